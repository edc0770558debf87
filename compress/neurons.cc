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

/// Rows `kept` of each of the stacked parts (gate and up, or one) of a block of equal parts.
void select_rows(const float* in, size_t parts, size_t width, size_t row,
                 const std::vector<size_t>& kept, float* out) {
  for (size_t part = 0; part < parts; part++)
    for (const size_t neuron : kept)
      out = std::copy_n(in + (part * width + neuron) * row, row, out);
}

void select_columns(const float* in, size_t rows, size_t width, const std::vector<size_t>& kept,
                    float* out) {
  for (size_t row = 0; row < rows; row++)
    for (const size_t neuron : kept) *out++ = in[row * width + neuron];
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

Result<std::vector<double>> neuron_importance(const ParameterLayout& layout,
                                              std::span<const float> flat,
                                              const ChannelNorms& norms, int layer) {
  const Block& down = layout.layer(layer).down;
  const std::string& name = first_parameter(layout, down).name;
  std::vector<double> importance = norms.norms(name);
  const size_t width = static_cast<size_t>(down.cols);
  if (importance.size() != width)
    return Error{ErrorCode::kInvalidArgument, "the calibration has not seen this matrix", name,
                 "calibrate on the same model"};
  std::vector<double> squares(width);
  const float* row = flat.data() + down.offset;
  for (int r = 0; r < down.rows; r++, row += width)
    for (size_t j = 0; j < width; j++)
      squares[j] += static_cast<double>(row[j]) * static_cast<double>(row[j]);
  for (size_t j = 0; j < width; j++) importance[j] *= std::sqrt(squares[j]);
  return importance;
}

Result<FlatModel> remove_neurons(const FlatModel& model, const ChannelNorms& norms,
                                 double sparsity) {
  const ParameterLayout before(model.config);
  std::vector<std::vector<size_t>> kept;
  std::vector<int> widths;
  for (int layer = 0; layer < model.config.layers; layer++) {
    FS_ASSIGN(const std::vector<double> importance,
              neuron_importance(before, model.flat, norms, layer));
    widths.push_back(kept_neurons(model.config.mlp_width(layer), sparsity));
    kept.push_back(most_important(importance, widths.back()));
  }
  FlatModel out{with_widths(model.config, widths), {}};
  const ParameterLayout after(out.config);
  out.flat.resize(after.elements());
  for (size_t i = 0; i < after.parameters().size(); i++) {
    const Parameter &from = before.parameters()[i], &to = after.parameters()[i];
    if (from.size() == to.size())
      std::copy_n(model.flat.data() + from.offset, from.size(), out.flat.data() + to.offset);
  }
  const size_t hidden = static_cast<size_t>(model.config.hidden_size);
  const size_t parts = model.config.mlp == MlpKind::kSwiGlu ? 2 : 1;
  for (int layer = 0; layer < model.config.layers; layer++) {
    const std::vector<size_t>& neurons = kept[static_cast<size_t>(layer)];
    const size_t width = static_cast<size_t>(model.config.mlp_width(layer));
    const LayerBlocks &from = before.layer(layer), &to = after.layer(layer);
    const float* in = model.flat.data();
    select_rows(in + from.up.offset, parts, width, hidden, neurons, out.flat.data() + to.up.offset);
    if (!from.up_bias.empty())
      select_rows(in + from.up_bias.offset, parts, width, 1, neurons,
                  out.flat.data() + to.up_bias.offset);
    select_columns(in + from.down.offset, hidden, width, neurons, out.flat.data() + to.down.offset);
  }
  return out;
}

}  // namespace fastserve
