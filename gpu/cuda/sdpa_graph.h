// Causal attention as cuDNN's pattern matcher wants it written.
#pragma once

#include "gpu/cuda/sdpa_plan.h"

namespace fastserve::gpu {

/// Flash attention (Dao 2023): softmax(scale Q K^T) V, and the log-sum-exp that backward needs.
Result<Descriptor> sdpa_forward_graph(const Cudnn& library, const SdpaShape& shape,
                                      cudnnHandle_t handle);
/// How dQ is written, which is what cuDNN tells its kernels backward by.
enum class QueryGradient {
  kWhole,  ///< by a product of its own: the scores' gradient lies in the workspace in between
  kSums,   ///< through float sums, to which blocks add as they come: in no fixed order
};
/// dQ, dK and dV from Q, K, V, O, dO and the statistics.
Result<Descriptor> sdpa_backward_graph(const Cudnn& library, const SdpaShape& shape,
                                       QueryGradient how, cudnnHandle_t handle);

}  // namespace fastserve::gpu
