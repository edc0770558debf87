// The transformer's training pass, written once over Device: one microbatch forward and backward.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "model/device.h"
#include "model/parameters.h"

namespace fastserve {

/// Tokens of one microbatch: sequences packed one after another.
struct Microbatch {
  std::vector<int32_t> tokens;   ///< inputs, all sequences
  std::vector<int32_t> targets;  ///< same length; -1: not counted in the loss
  std::vector<int32_t>
      starts;               ///< sequence s is [starts[s], starts[s+1]); first 0, last tokens.size()
  int64_t counted() const;  ///< targets that are not -1
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
    int matrix;  ///< index of the packed matrix, -1 for vectors and look-up tables
    int row, rows;
  };
  static constexpr int kRows = 64;
  /// The tiles of a model, wherever its weights are.
  static std::vector<Tile> tiles_of(const ModelConfig& config, const ParameterLayout& layout);
  const std::vector<Tile>& tiles() const { return tiles_; }
  /// Repacks one tile from the masters. Safe from several threads on different tiles.
  void refresh(const Tile& tile, const TrainOps& ops);
  /// Repacks everything.
  void refresh_all(const TrainOps& ops);

  /// Of these weights and no others, for as long as anybody remembers it.
  const std::shared_ptr<const void>& identity() const { return identity_; }

  const TrainMatrix& matrix(const Block& block) const;
  const float* at(const Block& block) const {
    return block.empty() ? nullptr : masters_.data() + block.offset;
  }

 private:
  TrainWeights() : identity_(std::make_shared<const char>()) {}
  std::shared_ptr<const void> identity_;
  std::unique_ptr<DeviceBuffer> memory_;
  std::span<float> masters_;
  std::vector<std::unique_ptr<TrainMatrix>> matrices_;
  std::vector<size_t> matrix_offsets_;  // sorted, parallel to matrices_
  std::vector<Tile> tiles_;
};

/// What a pass keeps of its way forward for its way back. It changes no bit.
enum class Recompute : uint8_t {
  kNone,   ///< everything that backward reads
  kLayer,  ///< each layer's input; the rest of a layer is computed once more where backward needs
           ///< it
};

/// Bytes that training a model takes on a device, known before anything is allocated.
struct TrainMemory {
  uint64_t masters = 0;      ///< fp32 parameters; gradients and each optimiser moment are as large
  uint64_t packed = 0;       ///< matrices in the device's layout, for both directions
  uint64_t activations = 0;  ///< of one TrainPass: exactly TrainPass::bytes()
};

/// What goes on beside a pass: weights may still be coming while it goes forward, and gradients go
/// out while it goes backward. Parameters lie in the order of layers (model/parameters.h), so one
/// mark says how far each way is: forward goes from the first element to the last, backward from
/// the last to the first.
///
/// Threads: called from the pass's thread. A call may block.
class PassFlow {
 public:
  virtual ~PassFlow() = default;
  /// Before the pass reads weights up to element `end`: true when they are in place, and stay until
  /// the pass has ended. False: the pass is to stop.
  virtual bool await_weights(size_t end) = 0;
  /// Elements of the gradient from `from` on are written, and will not change any more. A tied
  /// table lies at the front, where its gradient is whole last.
  virtual void gradient_final(size_t from) = 0;
};

/// Activations of one microbatch, and the pass over them.
///
/// Owns its activations, allocated once for `max_rows` tokens; run() allocates nothing of its own.
/// Threads: one caller. `device` and `ops` must outlive it.
/// Promises: bits do not depend on what it keeps of a shape. On a device that captures, a shape that
///           comes back (sequences, weights, gradient buffer) is started as graphs, unless a flow
///           or a tap stands in between.
class TrainPass {
 public:
  /// What create() will hold, so that a batch that cannot fit is refused in time.
  static TrainMemory estimate(const ModelConfig& config, const ParameterLayout& layout,
                              Precision precision, int max_rows,
                              Recompute recompute = Recompute::kNone);
  static Result<std::unique_ptr<TrainPass>> create(Device& device, TrainOps& ops,
                                                   const ModelConfig& config,
                                                   const ParameterLayout& layout, int max_rows,
                                                   Recompute recompute = Recompute::kNone);
  virtual ~TrainPass() = default;

  /// Summed loss over counted targets, unscaled. With `grad` (layout.elements() floats): grad =
  /// d(scale * summed loss)/dp, overwritten. `token_losses` (rows, or empty) receives each row's
  /// loss. `flow` is asked before each layer and told behind each; where it stops the pass, loss
  /// and gradient mean nothing.
  virtual double run(const TrainWeights& weights, const Microbatch& batch, float scale, float* grad,
                     std::span<double> token_losses = {}, PassFlow* flow = nullptr) = 0;

  /// Sees the input of each matrix as run() goes forward: the parameter's Hugging Face name (each
  /// part of a fused matrix in turn), and x [rows, channels] in host memory.
  using Tap =
      std::function<void(std::string_view parameter, const float* x, int rows, int channels)>;
  /// For calibration; fp32 only. An empty tap removes it.
  virtual void set_tap(Tap tap) = 0;

  /// For parity checks, after run(): residual stream into layer i (i = layers: final norm's
  /// output), [rows, hidden].
  virtual std::vector<float> hidden(int i) const = 0;
  /// For parity checks, after run(): [rows, vocab].
  virtual std::vector<float> logits(const TrainWeights& weights) = 0;

  /// Bytes of activations held.
  virtual size_t bytes() const = 0;
};

}  // namespace fastserve
