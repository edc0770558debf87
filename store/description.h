// What a bundle says about itself: shown in lists, so that nobody opens gigabytes to see a name.
#pragma once

#include <string>
#include <vector>

#include "model/tensor.h"

namespace fastserve {

struct BundleDescription {
  std::string architecture;   ///< config.json's model_type; empty without one
  std::string weight_format;  ///< of most weights: "bf16", "int8-g128"
  int64_t parameters = 0;     ///< numbers the model was trained with; scales are not counted
};
BundleDescription describe_bundle(const ModelBundle& bundle,
                                  const std::vector<std::pair<std::string, TensorView>>& tensors);

/// Sorts names in the order a model runs: embeddings, layers by number, final norm, head. So the
/// first layer is in memory while the last one is being read.
void sort_in_execution_order(std::vector<std::string>& names);

}  // namespace fastserve
