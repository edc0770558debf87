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
  size_t bytes_per_token = 0;                    ///< read for one decoded token, of what is there
};

/// Reads and packs a bundle's tensors in the order in which a step reads them, part by part: the
/// tables, each layer, the head, and at last what the device found wrong with any of them. One
/// layer is in host memory at a time.
///
/// Owns:    what is read, until it ends; keeps the bundle's tensors.
/// Threads: one caller. Device and operations must outlive it.
class DecoderLoad {
 public:
  struct Watch {
    std::function<void(double)> progress;  ///< 0..1; may be empty
    std::function<bool()> stopped;         ///< asked before each part; true ends it; may be empty
  };
  static Result<std::unique_ptr<DecoderLoad>> begin(Device& device, DecodeOps& ops,
                                                    const ModelBundle& bundle,
                                                    const ModelConfig& config,
                                                    WeightFormat float_format, Watch watch);
  ~DecoderLoad();

  static constexpr size_t kTables = 1;                                         ///< up to the tables
  static size_t layer(int l) { return kTables + static_cast<size_t>(l) + 1; }  ///< up to layer l
  size_t head() const { return layer(layers_); }                               ///< up to the head
  size_t parts() const { return head() + 1; }
  size_t taken() const { return taken_; }

  /// Takes parts until so many are there. Ordered before what the device is given afterwards.
  /// Errors: the store's; the device's; of the last part kCorrupt when the device found a number
  /// out of range; kCancelled. The first is that of every later call.
  Status take(DecoderWeights& weights, size_t parts);
  /// An error that the device told of meanwhile may be about the weights: it ends the load.
  Status keep(const Status& told);

 private:
  class Loader;
  DecoderLoad(std::unique_ptr<Loader> loader, const ModelConfig& config, Watch watch);
  Status take_next(DecoderWeights& weights);
  void report() const;

  std::unique_ptr<Loader> loader_;
  const int layers_;
  const Watch watch_;
  size_t taken_ = 0;
  Status failure_;  ///< what ended it
};

}  // namespace fastserve
