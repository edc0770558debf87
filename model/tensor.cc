#include "model/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstring>

namespace fastserve {
namespace {

struct DTypeEntry {
  DType dtype;
  size_t bytes;
  const char* name;
};
constexpr DTypeEntry kDTypes[] = {
    {DType::kF64, 8, "F64"},   {DType::kF32, 4, "F32"}, {DType::kF16, 2, "F16"},
    {DType::kBF16, 2, "BF16"}, {DType::kI64, 8, "I64"}, {DType::kI32, 4, "I32"},
    {DType::kI16, 2, "I16"},   {DType::kI8, 1, "I8"},   {DType::kU8, 1, "U8"},
    {DType::kBool, 1, "BOOL"},
};
// Well-formed types of the format that no model here uses.
constexpr const char* kOtherDTypes[] = {"U16",     "U32", "U64", "F8_E4M3", "F8_E5M2",
                                        "F8_E8M0", "C64", "F4",  "F6_E2M3", "F6_E3M2"};

const DTypeEntry& entry(DType dtype) { return kDTypes[static_cast<size_t>(dtype)]; }

/// Elements [from, from + n) of packed T, which may lie unaligned in a file, as float.
template <class T>
void convert(const std::byte* bytes, float* out, size_t n) {
  for (size_t i = 0; i < n; i++) {
    T value;
    std::memcpy(&value, bytes + i * sizeof(T), sizeof(T));
    out[i] = static_cast<float>(value);
  }
}

void convert_bfloat16(const std::byte* bytes, float* out, size_t n) {
  for (size_t i = 0; i < n; i++) {
    uint16_t bits;
    std::memcpy(&bits, bytes + 2 * i, 2);
    out[i] = std::bit_cast<float>(uint32_t{bits} << 16);
  }
}

// to_float(Float16) without branches and in signed integers, so that the loop vectorises on any
// ISA.
void convert_float16(const std::byte* bytes, float* out, size_t n) {
  for (size_t i = 0; i < n; i++) {
    uint16_t bits;
    std::memcpy(&bits, bytes + 2 * i, 2);
    const int32_t rest = bits & 0x7fff;
    const int32_t shifted = rest << 13;
    const int32_t special = rest >= 0x7c00 ? 112 << 23 : 0;  // Inf, NaN keep an all-ones exponent
    const int32_t normal = shifted + (112 << 23) + special;
    const float subnormal = std::bit_cast<float>(shifted + (113 << 23)) - 0x1.0p-14f;
    const int32_t small =
        -static_cast<int32_t>(rest < 0x400);  // all ones or zero: a select by mask
    const int32_t magnitude = (std::bit_cast<int32_t>(subnormal) & small) | (normal & ~small);
    out[i] = std::bit_cast<float>(magnitude | static_cast<int32_t>(uint32_t{bits} >> 15 << 31));
  }
}

}  // namespace

size_t dtype_bytes(DType dtype) { return entry(dtype).bytes; }
const char* dtype_name(DType dtype) { return entry(dtype).name; }

Result<DType> parse_dtype(std::string_view name) {
  for (const DTypeEntry& known : kDTypes)
    if (name == known.name) return known.dtype;
  for (const char* other : kOtherDTypes)
    if (name == other)
      return Error{ErrorCode::kUnsupported, fmt::format("the dtype {} is not supported", name), "",
                   "convert the tensors to F32, F16 or BF16"};
  return Error{ErrorCode::kCorrupt,
               fmt::format("\"{}\" is not a dtype of the safetensors format", name), "",
               "write the file again with a current safetensors library"};
}

int64_t TensorView::elements() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

void TensorView::read_floats(int64_t from, std::span<float> out) const {
  FS_CHECK(from >= 0);
  const size_t width = dtype_bytes(dtype), first = static_cast<size_t>(from);
  FS_CHECK(first <= bytes.size() / width && out.size() <= bytes.size() / width - first);
  if (out.empty()) return;
  const std::byte* source = bytes.data() + first * width;
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out.data(), source, out.size() * sizeof(float));
      return;
    case DType::kF64:
      return convert<double>(source, out.data(), out.size());
    case DType::kF16:
      return convert_float16(source, out.data(), out.size());
    case DType::kBF16:
      return convert_bfloat16(source, out.data(), out.size());
    case DType::kI64:
      return convert<int64_t>(source, out.data(), out.size());
    case DType::kI32:
      return convert<int32_t>(source, out.data(), out.size());
    case DType::kI16:
      return convert<int16_t>(source, out.data(), out.size());
    case DType::kI8:
      return convert<int8_t>(source, out.data(), out.size());
    case DType::kU8:
    case DType::kBool:
      return convert<uint8_t>(source, out.data(), out.size());
  }
}

std::vector<float> TensorView::to_floats() const {
  std::vector<float> out(bytes.size() / dtype_bytes(dtype));
  read_floats(0, out);
  return out;
}

std::string TensorView::shape_text() const { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Tensor Tensor::from_floats(std::vector<int64_t> shape, std::span<const float> values, DType dtype) {
  FS_CHECK(dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16);
  Tensor tensor{dtype, std::move(shape),
                std::vector<std::byte>(values.size() * dtype_bytes(dtype))};
  FS_CHECK(tensor.view().elements() == static_cast<int64_t>(values.size()));
  if (values.empty()) return tensor;
  if (dtype == DType::kF32) {
    std::memcpy(tensor.bytes.data(), values.data(), values.size_bytes());
    return tensor;
  }
  auto* halves = reinterpret_cast<uint16_t*>(tensor.bytes.data());  // vector memory is aligned
  if (dtype == DType::kBF16)
    for (size_t i = 0; i < values.size(); i++) halves[i] = to_bfloat16(values[i]).bits;
  else
    for (size_t i = 0; i < values.size(); i++) halves[i] = to_float16(values[i]).bits;
  return tensor;
}

std::vector<std::string> TensorMap::names() const {
  std::vector<std::string> out;
  out.reserve(tensors_.size());
  for (const auto& [name, tensor] : tensors_) out.push_back(name);
  return out;
}

Result<TensorView> TensorMap::tensor(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second.view();
  return Error{ErrorCode::kNotFound, fmt::format("there is no tensor \"{}\"", name), where_, ""};
}

}  // namespace fastserve
