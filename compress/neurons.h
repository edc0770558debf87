// Structured pruning: whole MLP neurons leave, and the matrices really shrink.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "compress/calibration.h"
#include "model/parameters.h"

namespace fastserve {

/// Neurons that a layer of `width` keeps when `sparsity` of them should go: a multiple of 64 (of 16
/// below 256), at least one such multiple, and fewer than `width` wherever that leaves one.
int kept_neurons(int width, double sparsity);

/// How much each neuron of a layer matters: ||h_j||_2 * ||down[:, j]||_2, where h_j is what the
/// neuron put out over the calibration tokens. This is the Frobenius norm of all that it ever added
/// to the residual stream, i.e. of the layer's output error if it alone is removed (Wanda's score,
/// Sun et al. 2023, summed in squares over the column that goes). `values` are those of the layer's
/// matrix `down`. kInvalidArgument when `norms` has not seen it.
Result<std::vector<double>> neuron_importance(const Parameter& down, std::span<const float> values,
                                              const ChannelNorms& norms);
/// The matrix that takes a layer's neurons back to the residual stream.
const Parameter& down_projection(const ParameterLayout& layout, int layer);

/// Which neurons of each layer stay (ascending), and what the model's config is then.
struct NeuronChoice {
  ModelConfig config;
  std::vector<std::vector<size_t>> kept;
};

/// One parameter's floats, as they lie in the flat buffer.
using ReadParameter = std::function<Result<std::vector<float>>(const Parameter&)>;

/// Chooses the most important neurons of each layer, the same fraction everywhere, so that a model
/// with equal widths keeps equal widths and loads anywhere. Reads one matrix at a time.
Result<NeuronChoice> choose_neurons(const ModelConfig& config, const ParameterLayout& layout,
                                    const ReadParameter& read, const ChannelNorms& norms,
                                    double sparsity);

/// `values` of a parameter of `layout`, without the neurons that go: fewer rows of gate and up,
/// fewer columns of down, shorter biases; any other parameter as it is. Those that stay keep their
/// order.
std::vector<float> without_neurons(const ParameterLayout& layout, const NeuronChoice& choice,
                                   const Parameter& parameter, std::vector<float> values);

}  // namespace fastserve
