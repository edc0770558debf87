// A model's weights packed for inference.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "model/decoder.h"

namespace fastserve {

/// One layer: four matrices, and the vectors as device floats (null where the model has none).
struct DecoderLayer {
  std::unique_ptr<DecodeMatrix> qkv, output, up, down;
  const float *norm1 = nullptr, *norm1_bias = nullptr, *norm2 = nullptr, *norm2_bias = nullptr;
  const float *qkv_bias = nullptr, *output_bias = nullptr;
  const float *up_bias = nullptr, *down_bias = nullptr;
  const float *q_norm = nullptr, *k_norm = nullptr;
};

/// Owns every weight on the device. Immutable once loaded.
struct DecoderWeights {
  std::vector<DecoderLayer> layers;
  const float *final_norm = nullptr, *final_norm_bias = nullptr;
  std::unique_ptr<DecodeMatrix> head;

  std::unique_ptr<DeviceBuffer> token_table;  ///< [vocab, hidden] of token_type
  DType token_type = DType::kF32;
  std::unique_ptr<DeviceBuffer> position_table;  ///< float [positions, hidden]; null without
  std::unique_ptr<DeviceBuffer> vectors;         ///< every vector, one after another
  size_t bytes_per_token = 0;                    ///< read for one decoded token

  /// Reads and packs the bundle's tensors in execution order, one layer in host memory at a time.
  static Result<DecoderWeights> load(Device& device, DecodeOps& ops, const ModelBundle& bundle,
                                     const ModelConfig& config, WeightFormat float_format,
                                     const std::function<void(double)>& progress);
};

}  // namespace fastserve
