// The transformer's inference pass, written once over Device.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/device.h"
#include "model/parameters.h"

namespace fastserve {

/// How a captured decode step's operations are started where the device can do several as one.
enum class StepKernels : uint8_t {
  kEach,
  kFused,
  kMeasured  ///< as is faster: both are tried when a shape of steps comes for the second time
};

struct DecoderOptions {
  /// A float format, for matrices that the bundle holds as floats; quantised ones keep their own.
  WeightFormat weights = WeightFormat::kBFloat16;
  KvType kv = KvType::kFloat16;
  int kv_blocks = 0;  ///< blocks in the pool
  int block_tokens = 16;
  int max_rows = 512;  ///< rows of one step
  int max_logits = 0;  ///< rows of one step that may want logits; 0: max_rows
  /// Most memory of the host for blocks of requests that gave way, where a device has its own.
  uint64_t host_bytes = uint64_t{8} << 30;
  int graphs = 32;  ///< shapes of decode steps kept captured, on a device that captures; 0: none
  StepKernels kernels = StepKernels::kEach;  ///< until a card has shown what the others give
};

/// A KV block that leaves the pool for a place on the host, or comes back from there.
struct BlockMove {
  bool out;
  int32_t block, place;
};

/// One model ready to answer: packed weights, KV pool, activations.
///
/// Threads: one caller. Everything is allocated by load(), or begin() and load_more(); a step of a
///          loaded one allocates nothing. The device must outlive it.
class Decoder {
 public:
  /// Reads each tensor once, in execution order. `progress` (0..1) may be empty.
  static Result<std::unique_ptr<Decoder>> load(Device& device, const ModelBundle& bundle,
                                               const DecoderOptions& options,
                                               const std::function<void(double)>& progress = {});
  /// The same with the weights still to come: by load_more(), part by part, and by steps as they
  /// go. `stopped` is asked before each part, from who calls those; true ends the load with
  /// kCancelled.
  static Result<std::unique_ptr<Decoder>> begin(Device& device, const ModelBundle& bundle,
                                                const DecoderOptions& options,
                                                std::function<void(double)> progress = {},
                                                std::function<bool()> stopped = {});
  virtual ~Decoder() = default;

  /// All weights are there, and nothing was found wrong with them.
  virtual bool loaded() const { return true; }
  /// Takes the next part of the weights: the tables, a layer, the head. Errors: those of load(),
  /// from then on of every call, steps included.
  virtual Status load_more() { return {}; }
  /// Waits for what has been taken. To be called before another decoder of the device steps, which
  /// would be told of what went wrong with this one's weights.
  virtual Status settle() { return {}; }
  /// True: a step may begin before all weights are there, and gains by it: each layer waits for its
  /// own weights alone, and those of the next are on their way beside it. What it answers is given
  /// out when all weights are there and have been looked at.
  virtual bool steps_while_loading() const { return false; }

  virtual const ModelConfig& config() const = 0;
  virtual const DecoderOptions& options() const = 0;
  virtual size_t weight_bytes() const = 0;  ///< read per decoded token of one stream, once loaded
  virtual size_t kv_bytes() const = 0;

  /// Runs the segments' new tokens (their rows in order in `tokens`). Afterwards row i of the
  /// result
  /// ([wanted.size(), vocab], host memory, valid until the next step) holds the logits of batch row
  /// wanted[i].
  /// Requires tokens inside the vocabulary, positions below max_positions and blocks for them.
  /// Errors: the device's, if it has failed; the blocks written to then hold nothing.
  virtual Result<std::span<const float>> step(std::span<const int32_t> tokens,
                                              std::span<const Segment> segments,
                                              std::span<const int32_t> wanted) = 0;

  /// True: the device draws tokens, and logits need not come to the host.
  virtual bool draws() const { return false; }
  /// As step(), but its result is a token for each row of `wanted`, drawn as `draws` says of it,
  /// and is had from drawn(): this only hands the work over. Nothing else may be asked for before
  /// that but, where the decoder draws_ahead(), one more such step, in which the token ~i is what
  /// row wanted[i] of the first draws. What was begun must be had before the decoder ends. Requires
  /// draws(). Errors: that there is nothing to be had.
  virtual Status begin_drawing(std::span<const int32_t> /*tokens*/,
                               std::span<const Segment> /*segments*/,
                               std::span<const int32_t> /*wanted*/,
                               std::span<const TokenDraw> /*draws*/) {
    return Error{ErrorCode::kUnsupported, "does not draw tokens", "the device", ""};
  }
  /// Waits for the tokens of the step at work that was begun first; -1 where logits are not finite.
  /// Valid until two more have been begun. Errors: step()'s; nothing is at work any more then.
  virtual Result<std::span<const int32_t>> drawn() {
    return Error{ErrorCode::kUnsupported, "does not draw tokens", "the device", ""};
  }
  virtual bool draws_ahead() const { return false; }
  Result<std::span<const int32_t>> step_and_draw(std::span<const int32_t> tokens,
                                                 std::span<const Segment> segments,
                                                 std::span<const int32_t> wanted,
                                                 std::span<const TokenDraw> draws) {
    FS_TRY(begin_drawing(tokens, segments, wanted, draws));
    return drawn();
  }
  /// The logits of the last drawing step's row wanted[i]; valid until the next call. Requires that
  /// nothing is at work.
  virtual Result<std::span<const float>> logits_of(size_t /*i*/) {
    return Error{ErrorCode::kUnsupported, "does not draw tokens", "the device", ""};
  }
  /// Blocks that can be kept on the host beside the pool: places 0 to this. 0 where the pool lies
  /// in the host's memory itself.
  virtual int host_places() const { return 0; }
  /// Moves blocks, in order. Errors: the device's; kResourceExhausted when the host has no room.
  virtual Status move_blocks(std::span<const BlockMove> /*moves*/) { return {}; }
  /// Steps that ran as one captured graph so far.
  virtual int64_t graph_steps() const { return 0; }
  /// Seconds so far in which the device may have stood still between two drawing steps: from the
  /// end of the one, or from its beginning where its tokens were there when they were asked for,
  /// until the other was handed over.
  virtual double idle_seconds() const { return 0; }

  /// -log p of tokens[i+1] given tokens[0..i], tokens.size()-1 values; needs enough free blocks,
  /// passed in `blocks`. For perplexity and logprobs of prompts.
  virtual Result<std::vector<double>> score(std::span<const int32_t> tokens,
                                            std::span<const int32_t> blocks) = 0;
};

}  // namespace fastserve
