// Attention by a library, where it was measured to be faster than the kernels of this room.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "gpu/plan_cache.h"
#include "gpu/runtime.h"
#include "model/train_ops.h"

namespace fastserve::gpu {

/// Each way by itself: either side's way forward may be followed by either side's way back.
///
/// Threads:  one caller at a time. Calls are ordered on the runtime's stream.
/// Promises: the same microbatch, the same bits. A way that does not keep that is not supported.
/// Errors:   through Runtime::report.
class AttentionEngine {
 public:
  virtual ~AttentionEngine() = default;
  /// Part of Device::numerics_id: whatever may change a bit is in it.
  virtual std::string name() = 0;
  /// False: the caller's own kernels run it.
  virtual bool supports(const AttentionForward& op, Precision precision) = 0;
  virtual bool supports(const AttentionBackward& op, Precision precision) = 0;
  /// Part of TrainOps::scratch_version().
  virtual uint64_t scratch_version() const { return 0; }
  /// Bytes of the card's memory that it may take when it runs, some MB more or less.
  virtual uint64_t most_scratch() { return 0; }
  /// `op.stats` become what kernels/attention.cuh says of them.
  virtual void forward(const AttentionForward& op, Precision precision) = 0;
  /// Reads such stats, whoever left them.
  virtual void backward(const AttentionBackward& op, Precision precision) = 0;
};

/// What an engine that knows natural logarithms leaves, as AttentionArguments::stats: from
/// [sequences, heads, tokens] log of the sum of exponentials (device).
void store_log_sums(Runtime& runtime, const float* log_sums, int sequences, int tokens, int heads,
                    float* stats);
/// The reverse, for its way back.
void load_log_sums(Runtime& runtime, const float* stats, int sequences, int tokens, int heads,
                   float* log_sums);

/// Ops that share a choice: the first kind that is as large as the op is its own.
struct AttentionKind {
  int head_dim, longest;         ///< at most
  int tokens, sequences, heads;  ///< what it is measured with
};
std::vector<AttentionKind> common_attention_kinds();

/// `engine` for those kinds and ways where it beat the flash kernels, once, on this card: its
/// choices are kept in `folder`, and are part of the name, so that a job does not mix machines that
/// chose otherwise. Measures when it is first asked for anything.
std::unique_ptr<AttentionEngine> make_measured_attention(std::unique_ptr<AttentionEngine> engine,
                                                         Runtime& runtime, const Path& folder,
                                                         std::vector<AttentionKind> kinds,
                                                         const Clock& clock);

}  // namespace fastserve::gpu
