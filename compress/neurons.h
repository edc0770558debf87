// Structured pruning: whole MLP neurons leave, and the matrices really shrink.
#pragma once

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
/// Sun et al. 2023, summed in squares over the column that goes). kInvalidArgument when `norms` has
/// not seen the layer.
Result<std::vector<double>> neuron_importance(const ParameterLayout& layout,
                                              std::span<const float> flat,
                                              const ChannelNorms& norms, int layer);

/// A model as a config and its flat buffer.
struct FlatModel {
  ModelConfig config;
  std::vector<float> flat;
};

/// Removes the least important neurons of each layer, the same fraction everywhere, so that a model
/// with equal widths keeps equal widths and loads anywhere. Those that stay keep their order.
Result<FlatModel> remove_neurons(const FlatModel& model, const ChannelNorms& norms,
                                 double sparsity);

}  // namespace fastserve
