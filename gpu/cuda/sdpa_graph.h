// Causal attention as cuDNN's pattern matcher wants it written.
#pragma once

#include "gpu/cuda/sdpa_plan.h"

namespace fastserve::gpu {

/// Flash attention (Dao 2023): softmax(scale Q K^T) V, and the log-sum-exp that backward needs.
Result<Descriptor> sdpa_forward_graph(const Cudnn& library, const SdpaShape& shape,
                                      cudnnHandle_t handle);
/// dQ, dK and dV from Q, K, V, O, dO and the statistics.
Result<Descriptor> sdpa_backward_graph(const Cudnn& library, const SdpaShape& shape,
                                       cudnnHandle_t handle);

}  // namespace fastserve::gpu
