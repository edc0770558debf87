// The transformer's training pass, written once over Device: one microbatch forward and backward.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "model/device.h"
#include "model/parameters.h"

namespace fastserve {

/// Tokens of one microbatch: sequences packed one after another.
struct Microbatch {
  std::vector<int32_t> tokens;     ///< inputs, all sequences
  std::vector<int32_t> targets;    ///< same length; -1: not counted in the loss
  std::vector<int32_t> starts;     ///< sequence s is [starts[s], starts[s+1]); first 0, last tokens.size()
  int64_t counted() const;         ///< targets that are not -1
};

/// Weights in the device's training layout, with the fp32 masters they came from.
///
/// Shared by all passes of a device. Owns the masters (layout.elements() floats, device memory).
/// Threads: `refresh` of disjoint ranges may run in parallel; no pass may run meanwhile.
class TrainWeights {
 public:
  static Result<std::unique_ptr<TrainWeights>> create(Device& device, TrainOps& ops,
                                                      const ModelConfig& config,
                                                      const ParameterLayout& layout);
  std::span<float> masters() { return masters_; }
  std::span<const float> masters() const { return masters_; }

  /// A unit of work for the optimiser and for packing: at most `kRows` rows of one block, so that
  /// shards and lanes can share them out. Tiles cover every parameter once, in offset order.
  struct Tile {
    size_t offset, size;
    bool decay;
    int matrix;    ///< index of the packed matrix, -1 for vectors and position tables
    int row, rows;
  };
  const std::vector<Tile>& tiles() const { return tiles_; }
  /// Repacks one tile from the masters. Safe from several threads on different tiles.
  void refresh(const Tile& tile, const TrainOps& ops);
  /// Repacks everything.
  void refresh_all(const TrainOps& ops);

  const TrainMatrix& matrix(const Block& block) const;
  const float* at(const Block& block) const { return block.empty() ? nullptr : masters_.data() + block.offset; }

 private:
  TrainWeights() = default;
  std::unique_ptr<DeviceBuffer> memory_;
  std::span<float> masters_;
  std::vector<std::unique_ptr<TrainMatrix>> matrices_;
  std::vector<size_t> matrix_offsets_;  // sorted, parallel to matrices_
  std::vector<Tile> tiles_;
};

/// Activations of one microbatch, and the pass over them.
///
/// Owns its activations, allocated once for `max_rows` tokens. Threads: one caller.
class TrainPass {
 public:
  static Result<std::unique_ptr<TrainPass>> create(Device& device, TrainOps& ops,
                                                   const ModelConfig& config,
                                                   const ParameterLayout& layout, int max_rows);
  virtual ~TrainPass() = default;

  /// Summed loss over counted targets, unscaled. With `grad` (layout.elements() floats): grad =
  /// d(scale * summed loss)/dp, overwritten. `token_losses` (rows, or empty) receives each row's loss.
  virtual double run(const TrainWeights& weights, const Microbatch& batch, float scale, float* grad,
                     std::span<double> token_losses = {}) = 0;

  /// For parity checks, after run(): residual stream into layer i (i = layers: final norm's output), [rows, hidden].
  virtual std::vector<float> hidden(int i) const = 0;
  /// For parity checks, after run(): [rows, vocab].
  virtual std::vector<float> logits(const TrainWeights& weights) = 0;

  /// Bytes of activations held.
  virtual size_t bytes() const = 0;
};

}  // namespace fastserve
