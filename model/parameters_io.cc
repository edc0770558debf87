// Parameters to and from checkpoints: names, orientation, dtypes.
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "model/parameters.h"

namespace fastserve {
namespace {

/// The name under which a checkpoint holds a parameter: its own, or without the model's prefix.
std::string find_name(const TensorSource& source, const std::string& name) {
  if (source.contains(name)) return name;
  for (const std::string_view prefix : {"transformer.", "model."})
    if (name.starts_with(prefix) && source.contains(std::string_view(name).substr(prefix.size())))
      return name.substr(prefix.size());
  return {};
}

Error missing(const TensorSource& source, const std::string& name) {
  if (source.contains(name + ".codes"))
    return {ErrorCode::kUnsupported,
            fmt::format("the tensor \"{}\" is quantised, and floats are needed", name),
            source.where(), "use the model it was compressed from"};
  return {ErrorCode::kCorrupt, fmt::format("the tensor \"{}\" is missing", name), source.where(),
          "config.json and the weights do not belong together, or the download is incomplete"};
}

bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

/// out [cols, rows] = the transpose of in [rows, cols], in tiles, so that both sides move whole
/// cache lines. `out_ld` is the length of a row of `out`.
void transpose(const float* in, size_t rows, size_t cols, float* out, size_t out_ld) {
  constexpr size_t kTile = 16;
  float tile[kTile][kTile];
  for (size_t col = 0; col < cols; col += kTile)
    for (size_t row = 0; row < rows; row += kTile) {
      const size_t height = std::min(kTile, rows - row), width = std::min(kTile, cols - col);
      for (size_t r = 0; r < height; r++)
        for (size_t c = 0; c < width; c++) tile[c][r] = in[(row + r) * cols + col + c];
      for (size_t c = 0; c < width; c++)
        std::copy_n(tile[c], height, out + (col + c) * out_ld + row);
    }
}

/// Fills [rows, cols] from a tensor stored as [cols, rows], a strip of it at a time.
void read_transposed(const TensorView& view, size_t rows, size_t cols, float* out) {
  constexpr size_t kStrip = 64;
  std::vector<float> strip(kStrip * rows);
  for (size_t first = 0; first < cols; first += kStrip) {
    const size_t depth = std::min(kStrip, cols - first);
    view.read_floats(static_cast<int64_t>(first * rows), std::span(strip).first(depth * rows));
    transpose(strip.data(), depth, rows, out + first, cols);
  }
}

}  // namespace

Result<TensorView> find_parameter(const Parameter& parameter, const TensorSource& source) {
  const std::string name = find_name(source, parameter.name);
  if (name.empty()) return missing(source, parameter.name);
  FS_ASSIGN(TensorView view, source.tensor(name));
  if (view.shape != parameter.shape) {
    TensorView wanted;
    wanted.shape = parameter.shape;
    return Error{ErrorCode::kCorrupt,
                 fmt::format("the tensor \"{}\" has the shape {}, but config.json asks for {}",
                             name, view.shape_text(), wanted.shape_text()),
                 source.where(), "config.json and the weights do not belong together"};
  }
  if (!is_float(view.dtype))
    return Error{ErrorCode::kUnsupported,
                 fmt::format("the tensor \"{}\" is {}, and not F32, F16 or BF16", name,
                             dtype_name(view.dtype)),
                 source.where(), "convert the weights to one of these"};
  return view;
}

void read_parameter(const Parameter& parameter, const TensorView& view, std::span<float> out) {
  FS_CHECK(out.size() == parameter.size() && view.shape == parameter.shape);
  if (parameter.transposed)
    read_transposed(view, static_cast<size_t>(parameter.rows), static_cast<size_t>(parameter.cols),
                    out.data());
  else
    view.read_floats(0, out);
}

Status load_parameters(const ParameterLayout& layout, const TensorSource& source,
                       std::span<float> flat) {
  FS_CHECK(flat.size() == layout.elements());
  size_t end = 0;
  for (const Parameter& parameter : layout.parameters()) {
    FS_ASSIGN(const TensorView view, find_parameter(parameter, source));
    std::fill(flat.begin() + static_cast<ptrdiff_t>(end),
              flat.begin() + static_cast<ptrdiff_t>(parameter.offset), 0.0f);
    read_parameter(parameter, view, flat.subspan(parameter.offset, parameter.size()));
    end = parameter.offset + parameter.size();
  }
  std::fill(flat.begin() + static_cast<ptrdiff_t>(end), flat.end(), 0.0f);
  return {};
}

TensorMap save_parameters(const ParameterLayout& layout, std::span<const float> flat, DType dtype) {
  FS_CHECK(flat.size() == layout.elements());
  TensorMap tensors;
  for (const Parameter& parameter : layout.parameters()) {
    const std::span<const float> values = flat.subspan(parameter.offset, parameter.size());
    if (!parameter.transposed) {
      tensors.add(parameter.name, Tensor::from_floats(parameter.shape, values, dtype));
      continue;
    }
    const size_t rows = static_cast<size_t>(parameter.rows), cols = parameter.size() / rows;
    std::vector<float> turned(parameter.size());
    transpose(values.data(), rows, cols, turned.data(), rows);
    tensors.add(parameter.name, Tensor::from_floats(parameter.shape, turned, dtype));
  }
  return tensors;
}

}  // namespace fastserve
