#include "model/quantised.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace fastserve {
namespace {

struct FormatEntry {
  WeightFormat format;
  const char* name;
  int bits, group;
};
constexpr FormatEntry kFormats[] = {
    {WeightFormat::kFloat32, "f32", 32, 0},
    {WeightFormat::kBFloat16, "bf16", 16, 0},
    {WeightFormat::kFloat16, "f16", 16, 0},
    {WeightFormat::kInt8Row, "int8", 8, 0},
    {WeightFormat::kInt8Group32, "int8-g32", 8, 32},
    {WeightFormat::kInt8Group128, "int8-g128", 8, 128},
    {WeightFormat::kInt4Group32, "int4-g32", 4, 32},
    {WeightFormat::kInt4Group128, "int4-g128", 4, 128},
};

const FormatEntry& entry(WeightFormat format) { return kFormats[static_cast<size_t>(format)]; }
bool is_int4(WeightFormat format) { return format_bits(format) == 4; }

Error bad_tensor(const TensorSource& tensors, const std::string& name, std::string what) {
  return {ErrorCode::kCorrupt, fmt::format("the tensor \"{}\" {}", name, what), tensors.where(),
          "compress the model again"};
}

Result<TensorView> part(const TensorSource& tensors, const std::string& name) {
  if (!tensors.contains(name)) return bad_tensor(tensors, name, "is missing");
  FS_ASSIGN(TensorView view, tensors.tensor(name));
  if (view.shape.size() != 2 || view.shape[0] < 1 || view.shape[1] < 1 ||
      view.shape[0] > INT32_MAX || view.shape[1] > INT32_MAX / 2)
    return bad_tensor(tensors, name,
                      fmt::format("has the shape {}, which is no matrix", view.shape_text()));
  return view;
}

void unpack_nibbles(const TensorView& packed, QuantisedMatrix& matrix) {
  const size_t cols = static_cast<size_t>(matrix.cols), row_bytes = (cols + 1) / 2;
  for (size_t row = 0; row < static_cast<size_t>(matrix.rows); row++) {
    const auto* in = reinterpret_cast<const uint8_t*>(packed.bytes.data()) + row * row_bytes;
    uint8_t* out = matrix.codes.data() + row * cols;
    for (size_t pair = 0; pair < cols / 2; pair++) {
      out[2 * pair] = in[pair] & 15;
      out[2 * pair + 1] = in[pair] >> 4;
    }
    if (cols % 2 != 0) out[cols - 1] = in[cols / 2] & 15;
  }
}

std::vector<std::byte> pack_nibbles(const QuantisedMatrix& matrix) {
  const size_t cols = static_cast<size_t>(matrix.cols), row_bytes = (cols + 1) / 2;
  std::vector<std::byte> packed(static_cast<size_t>(matrix.rows) * row_bytes);
  for (size_t row = 0; row < static_cast<size_t>(matrix.rows); row++)
    for (size_t col = 0; col < cols; col++)
      packed[row * row_bytes + col / 2] |=
          static_cast<std::byte>(matrix.codes[row * cols + col] << (col % 2 * 4));
  return packed;
}

/// A code outside its format's range, which a kernel may rely on.
bool codes_in_range(const QuantisedMatrix& matrix) {
  uint8_t forbidden = 0x80;  // int8: -128
  if (is_int4(matrix.format)) {
    if (matrix.format != WeightFormat::kInt4Group128) return true;
    forbidden = 0;
  }
  return std::find(matrix.codes.begin(), matrix.codes.end(), forbidden) == matrix.codes.end();
}

}  // namespace

const char* weight_format_name(WeightFormat format) { return entry(format).name; }
int format_bits(WeightFormat format) { return entry(format).bits; }
int format_group(WeightFormat format) { return entry(format).group; }
bool is_quantised(WeightFormat format) { return format >= WeightFormat::kInt8Row; }

Result<WeightFormat> parse_weight_format(std::string_view name) {
  for (const FormatEntry& known : kFormats)
    if (name == known.name) return known.format;
  return Error{ErrorCode::kInvalidArgument, fmt::format("\"{}\" is not a weight format", name), "",
               "use f32, bf16, f16, int8, int8-g32, int8-g128, int4-g32 or int4-g128"};
}

int QuantisedMatrix::groups() const {
  const int group = format_group(format);
  return group == 0 ? 1 : (cols + group - 1) / group;
}

void QuantisedMatrix::dequantise_row(int row, std::span<float> out) const {
  FS_CHECK(row >= 0 && row < rows && out.size() == static_cast<size_t>(cols));
  const size_t width = static_cast<size_t>(cols), at = static_cast<size_t>(row);
  const size_t group =
      format_group(format) == 0 ? width : static_cast<size_t>(format_group(format));
  const uint8_t* code = codes.data() + at * width;
  const float* scale = scales.data() + at * static_cast<size_t>(groups());
  const bool nibbles = is_int4(format);
  for (size_t first = 0; first < width; first += group, scale++) {
    const size_t end = std::min(width, first + group);
    if (nibbles)
      for (size_t i = first; i < end; i++) out[i] = static_cast<float>(code[i] - 8) * *scale;
    else
      for (size_t i = first; i < end; i++)
        out[i] = static_cast<float>(static_cast<int8_t>(code[i])) * *scale;
  }
}

void add_quantised(TensorMap& tensors, const std::string& name, const QuantisedMatrix& matrix) {
  FS_CHECK(is_quantised(matrix.format));
  const int64_t rows = matrix.rows, cols = matrix.cols;
  FS_CHECK(matrix.codes.size() == static_cast<size_t>(rows * cols));
  FS_CHECK(matrix.scales.size() == static_cast<size_t>(rows * matrix.groups()));
  Tensor codes;
  if (is_int4(matrix.format)) {
    codes = {DType::kU8, {rows, (cols + 1) / 2}, pack_nibbles(matrix)};
  } else {
    codes = {DType::kI8, {rows, cols}, std::vector<std::byte>(matrix.codes.size())};
    std::memcpy(codes.bytes.data(), matrix.codes.data(), matrix.codes.size());
  }
  const DType scale_type = matrix.format == WeightFormat::kInt8Row ? DType::kF32 : DType::kF16;
  tensors.add(name + ".scales",
              Tensor::from_floats({rows, matrix.groups()}, matrix.scales, scale_type));
  tensors.add(name + ".codes", std::move(codes));
}

Status check_quantised(const TensorSource& tensors, const std::string& name, WeightFormat format,
                       int64_t rows, int64_t cols) {
  FS_ASSIGN(const TensorView codes, part(tensors, name + ".codes"));
  FS_ASSIGN(const TensorView scales, part(tensors, name + ".scales"));
  const int64_t width = is_int4(format) ? (cols + 1) / 2 : cols;
  const int64_t group = format_group(format), groups = group == 0 ? 1 : (cols + group - 1) / group;
  if (codes.dtype != (is_int4(format) ? DType::kU8 : DType::kI8) ||
      codes.shape != std::vector{rows, width})
    return bad_tensor(
        tensors, name + ".codes",
        fmt::format("is {} {}, but {} codes of a matrix [{}, {}] are {} [{}, {}]",
                    dtype_name(codes.dtype), codes.shape_text(), weight_format_name(format), rows,
                    cols, is_int4(format) ? "U8" : "I8", rows, width));
  if ((scales.dtype != DType::kF32 && scales.dtype != DType::kF16) ||
      scales.shape != std::vector{rows, groups})
    return bad_tensor(
        tensors, name + ".scales",
        fmt::format("is {} {}, but the scales of a matrix [{}, {}] in {} are F32 or F16 [{}, {}]",
                    dtype_name(scales.dtype), scales.shape_text(), rows, cols,
                    weight_format_name(format), rows, groups));
  return {};
}

Error code_out_of_range(const TensorSource& tensors, const std::string& name, WeightFormat format) {
  return bad_tensor(
      tensors, name + ".codes",
      fmt::format("holds a code outside the range of {}", weight_format_name(format)));
}

Error scale_not_finite(const TensorSource& tensors, const std::string& name) {
  return bad_tensor(tensors, name + ".scales", "holds a scale that is not finite");
}

Result<StoredQuantised> find_quantised(const TensorSource& tensors, const std::string& name,
                                       WeightFormat format, int cols) {
  FS_CHECK(is_quantised(format) && cols >= 0);
  FS_ASSIGN(TensorView codes, part(tensors, name + ".codes"));
  if (cols == 0) cols = static_cast<int>(codes.shape[1]) * (is_int4(format) ? 2 : 1);
  FS_TRY(check_quantised(tensors, name, format, codes.shape[0], cols));
  FS_ASSIGN(TensorView scales, tensors.tensor(name + ".scales"));
  const int rows = static_cast<int>(codes.shape[0]);
  return StoredQuantised{rows, cols, std::move(codes), std::move(scales)};
}

Result<QuantisedMatrix> read_quantised(const TensorSource& tensors, const std::string& name,
                                       WeightFormat format, int cols) {
  FS_ASSIGN(const StoredQuantised stored, find_quantised(tensors, name, format, cols));
  QuantisedMatrix matrix;
  matrix.format = format;
  matrix.rows = stored.rows;
  matrix.cols = stored.cols;
  matrix.codes.resize(static_cast<size_t>(matrix.rows) * static_cast<size_t>(matrix.cols));
  if (is_int4(format))
    unpack_nibbles(stored.codes, matrix);
  else
    std::memcpy(matrix.codes.data(), stored.codes.bytes.data(), matrix.codes.size());
  matrix.scales = stored.scales.to_floats();
  if (!codes_in_range(matrix)) return code_out_of_range(tensors, name, format);
  if (!std::all_of(matrix.scales.begin(), matrix.scales.end(),
                   [](float s) { return std::isfinite(s); }))
    return scale_not_finite(tensors, name);
  return matrix;
}

}  // namespace fastserve
