#include "compress/calibration.h"

#include <algorithm>
#include <cmath>

#include "model/huggingface.h"
#include "model/trainable.h"

namespace fastserve {

void ChannelNorms::observe(std::string_view parameter, const float* x, int rows, int channels) {
  auto found = sums_.find(parameter);
  if (found == sums_.end()) found = sums_.emplace(std::string(parameter), Sums{}).first;
  Sums& sums = found->second;
  sums.squares.resize(static_cast<size_t>(channels));
  for (int row = 0; row < rows; row++, x += channels)
    for (size_t c = 0; c < sums.squares.size(); c++)
      sums.squares[c] += static_cast<double>(x[c]) * static_cast<double>(x[c]);
  sums.rows += rows;
  tokens_ = std::max(tokens_, sums.rows);
}

std::vector<double> ChannelNorms::norms(std::string_view parameter) const {
  const auto found = sums_.find(parameter);
  if (found == sums_.end()) return {};
  std::vector<double> out = found->second.squares;
  for (double& value : out) value = std::sqrt(value);
  return out;
}

Result<ChannelNorms> calibrate(Device& device, const ModelBundle& bundle,
                               std::span<const std::vector<int32_t>> sequences,
                               const CancelFlag* cancel) {
  FS_ASSIGN(const ModelConfig config, bundle_config(bundle));
  size_t longest = 0;
  for (const auto& sequence : sequences) longest = std::max(longest, sequence.size());
  longest = std::min(longest, static_cast<size_t>(config.max_positions));
  if (longest == 0)
    return Error{ErrorCode::kInvalidArgument, "there is no text to calibrate on", "calibration",
                 "give some with --data"};

  const ParameterLayout layout(config);
  const std::unique_ptr<TrainOps> ops = device.make_train_ops(Precision::kFloat32);
  FS_ASSIGN(const std::unique_ptr<TrainWeights> weights,
            TrainWeights::create(device, *ops, config, layout));
  for (const Parameter& parameter : layout.parameters()) {
    FS_ASSIGN(const TensorView view, find_parameter(parameter, *bundle.tensors));
    std::vector<float> values(parameter.size());
    read_parameter(parameter, view, values);
    device.copy_in(weights->masters().data() + parameter.offset, values.data(),
                   values.size() * sizeof(float));
  }
  weights->refresh_all(*ops);
  FS_ASSIGN(const std::unique_ptr<TrainPass> pass,
            TrainPass::create(device, *ops, config, layout, static_cast<int>(longest)));
  ChannelNorms norms;
  pass->set_tap([&](std::string_view parameter, const float* x, int rows, int channels) {
    norms.observe(parameter, x, rows, channels);
  });
  for (const std::vector<int32_t>& sequence : sequences) {
    if (cancel != nullptr && cancel->raised())
      return Error{ErrorCode::kCancelled, "the compression was stopped", "calibration", ""};
    const size_t size = std::min(sequence.size(), longest);
    if (size == 0) continue;
    Microbatch batch;
    batch.tokens.assign(sequence.begin(), sequence.begin() + static_cast<std::ptrdiff_t>(size));
    batch.targets.assign(size, -1);
    batch.starts = {0, static_cast<int32_t>(size)};
    pass->run(*weights, batch, 1.0f, nullptr);
  }
  FS_TRY(device.sync());
  return norms;
}

}  // namespace fastserve
