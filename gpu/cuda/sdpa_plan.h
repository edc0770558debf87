// Causal attention by cuDNN: the graph of its forward or backward pass, and the plan that runs it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "gpu/cuda/cudnn_graph.h"
#include "model/train_ops.h"

namespace fastserve::gpu {

/// Sequences of one length; queries, keys and values lie in the rows of one fused projection.
struct SdpaShape {
  int64_t sequences, tokens;  ///< each of them
  HeadShape heads;
  Precision precision = Precision::kBFloat16;  ///< or kFloat16
};

enum class SdpaPass {
  kForward,
  kBackward,        ///< the same bits from run to run; room for tokens^2 of each head
  kBackwardAtomic,  ///< not: others' bits each time, to measure what that costs
};

/// The operands of an execution, by name.
enum SdpaOperand : int64_t {
  kSdpaQuery = 1,
  kSdpaKey,
  kSdpaValue,
  kSdpaOut,
  kSdpaStats,  ///< float [sequences, heads, tokens]: log of the sum of exponentials
  kSdpaScale,  ///< by value: 1/sqrt(head_dim)
  kSdpaNever,  ///< by value: the most negative float
  kSdpaOutGrad,
  kSdpaQueryGrad,
  kSdpaKeyGrad,
  kSdpaValueGrad,
  kSdpaOne,        ///< by value: 1
  kSdpaRowDots,    ///< float [sequences, heads, tokens]: room for backward
  kSdpaQuerySums,  ///< float [sequences, heads, tokens, head_dim]: room for kBackwardAtomic
};

/// What a plan is made for: a card through its handle, or a card's description without one.
struct SdpaTarget {
  cudnnHandle_t handle = nullptr;
  std::string device_properties;  ///< cuDNN's JSON; used when there is no handle
};

/// Threads: one caller at a time.
class SdpaPlan {
 public:
  /// The heuristic's first engine that promises the pass and can be built. kUnsupported with
  /// cuDNN's words when there is none: the caller's own kernels run the shape then.
  static Result<SdpaPlan> make(const Cudnn& library, const SdpaShape& shape, SdpaPass pass,
                               const SdpaTarget& target);

  int64_t workspace_bytes() const { return workspace_bytes_; }
  /// Engine's number and settings in cuDNN's own words: the same words, the same kernel.
  int64_t engine() const { return engine_; }
  /// On the handle's stream. Pointers to the card's memory by operand; by-value ones to the host's.
  Status run(cudnnHandle_t handle, const std::map<SdpaOperand, void*>& operands,
             void* workspace) const;

 private:
  SdpaPlan(Descriptor plan, int64_t engine) : plan_(std::move(plan)), engine_(engine) {}
  Descriptor plan_;
  int64_t engine_, workspace_bytes_ = 0;
};

}  // namespace fastserve::gpu
