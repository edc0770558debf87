#include "compress/neurons.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace fastserve {
namespace {

/// The parameter that begins where a block does.
const Parameter& first_parameter(const ParameterLayout& layout, const Block& block) {
  const auto& all = layout.parameters();
  const auto found =
      std::lower_bound(all.begin(), all.end(), block.offset,
                       [](const Parameter& p, size_t offset) { return p.offset < offset; });
  FS_CHECK(found != all.end() && found->offset == block.offset);
  return *found;
}

/// The indices of the `keep` most important, ascending; of equals the first stay.
std::vector<size_t> most_important(const std::vector<double>& importance, int keep) {
  std::vector<size_t> order(importance.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return importance[a] > importance[b]; });
  order.resize(static_cast<size_t>(keep));
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<float> select_rows(const std::vector<float>& in, size_t row,
                               const std::vector<size_t>& kept) {
  std::vector<float> out(kept.size() * row);
  float* to = out.data();
  for (const size_t neuron : kept) to = std::copy_n(in.data() + neuron * row, row, to);
  return out;
}

std::vector<float> select_columns(const std::vector<float>& in, size_t rows, size_t width,
                                  const std::vector<size_t>& kept) {
  std::vector<float> out(rows * kept.size());
  float* to = out.data();
  for (size_t row = 0; row < rows; row++)
    for (const size_t neuron : kept) *to++ = in[row * width + neuron];
  return out;
}

bool lies_in(const Parameter& parameter, const Block& block) {
  return parameter.offset >= block.offset && parameter.offset < block.offset + block.size();
}

ModelConfig with_widths(ModelConfig config, const std::vector<int>& widths) {
  config.intermediate_size = *std::max_element(widths.begin(), widths.end());
  const bool alike = std::all_of(widths.begin(), widths.end(),
                                 [&](int w) { return w == config.intermediate_size; });
  config.intermediate_sizes = alike ? std::vector<int>() : widths;
  return config;
}

}  // namespace

int kept_neurons(int width, double sparsity) {
  FS_CHECK(width > 0 && sparsity >= 0 && sparsity < 1);
  const int step = width >= 256 ? 64 : 16;
  if (width <= step) return width;
  const int wanted = static_cast<int>(std::lround(width * (1 - sparsity) / step)) * step;
  const int most = (width - 1) / step * step;
  return std::clamp(wanted, step, most);
}

const Parameter& down_projection(const ParameterLayout& layout, int layer) {
  return first_parameter(layout, layout.layer(layer).down);
}

Result<std::vector<double>> neuron_importance(const Parameter& down, std::span<const float> values,
                                              const ChannelNorms& norms) {
  FS_CHECK(values.size() == down.size());
  std::vector<double> importance = norms.norms(down.name);
  const size_t width = static_cast<size_t>(down.cols);
  if (importance.size() != width)
    return Error{ErrorCode::kInvalidArgument, "the calibration has not seen this matrix", down.name,
                 "calibrate on the same model"};
  std::vector<double> squares(width);
  const float* row = values.data();
  for (int r = 0; r < down.rows; r++, row += width)
    for (size_t j = 0; j < width; j++)
      squares[j] += static_cast<double>(row[j]) * static_cast<double>(row[j]);
  for (size_t j = 0; j < width; j++) importance[j] *= std::sqrt(squares[j]);
  return importance;
}

Result<NeuronChoice> choose_neurons(const ModelConfig& config, const ParameterLayout& layout,
                                    const ReadParameter& read, const ChannelNorms& norms,
                                    double sparsity) {
  NeuronChoice choice;
  std::vector<int> widths;
  for (int layer = 0; layer < config.layers; layer++) {
    const Parameter& down = down_projection(layout, layer);
    FS_ASSIGN(const std::vector<float> values, read(down));
    FS_ASSIGN(const std::vector<double> importance, neuron_importance(down, values, norms));
    widths.push_back(kept_neurons(config.mlp_width(layer), sparsity));
    choice.kept.push_back(most_important(importance, widths.back()));
  }
  choice.config = with_widths(config, widths);
  return choice;
}

std::vector<float> without_neurons(const ParameterLayout& layout, const NeuronChoice& choice,
                                   const Parameter& parameter, std::vector<float> values) {
  const size_t rows = static_cast<size_t>(parameter.rows),
               cols = static_cast<size_t>(parameter.cols);
  FS_CHECK(values.size() == rows * cols);
  for (size_t layer = 0; layer < choice.kept.size(); layer++) {
    const LayerBlocks& blocks = layout.layer(static_cast<int>(layer));
    const std::vector<size_t>& kept = choice.kept[layer];
    if (lies_in(parameter, blocks.up)) return select_rows(values, cols, kept);
    if (lies_in(parameter, blocks.up_bias) || lies_in(parameter, blocks.down))
      return select_columns(values, rows, cols, kept);
  }
  return values;
}

}  // namespace fastserve
