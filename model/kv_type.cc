#include "model/kv_type.h"

#include <fmt/format.h>

namespace fastserve {
namespace {

constexpr struct {
  const char* name;
  size_t element_bytes, scale_bytes;
} kTypes[] = {{"f32", 4, 0}, {"f16", 2, 0}, {"int8", 1, sizeof(float)}};

}  // namespace

const char* kv_type_name(KvType type) { return kTypes[static_cast<size_t>(type)].name; }

Result<KvType> parse_kv_type(std::string_view name) {
  for (const KvType type : {KvType::kFloat32, KvType::kFloat16, KvType::kInt8})
    if (name == kv_type_name(type)) return type;
  return Error{ErrorCode::kInvalidArgument, fmt::format("\"{}\" is no type of a KV cache", name),
               "kv", "use f16, f32 or int8"};
}

size_t kv_head_bytes(KvType type, int head_dim) {
  const auto& t = kTypes[static_cast<size_t>(type)];
  return static_cast<size_t>(head_dim) * t.element_bytes + t.scale_bytes;
}

}  // namespace fastserve
