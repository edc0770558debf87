// What the elements of a KV cache are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/result.h"

namespace fastserve {

/// How a key or a value of one token and head is held.
///   kFloat32, kFloat16  its numbers, rounded to nearest even
///   kInt8               a scale max |x| / 127 in float, and codes x * (127 / max |x|) to nearest
///                       even, all 0 where max |x| <= 1e-30; so that neither a token nor a head
///                       with large numbers coarsens another's
enum class KvType : uint8_t { kFloat32, kFloat16, kInt8 };

const char* kv_type_name(KvType type);  ///< "f32", "f16", "int8"
Result<KvType> parse_kv_type(std::string_view name);

/// Bytes of one key or value: head_dim numbers, and their scale if there is one.
size_t kv_head_bytes(KvType type, int head_dim);

}  // namespace fastserve
