// TrainOps on a GPU.
#pragma once

#include <memory>
#include <span>

#include "base/half.h"
#include "gpu/attention_engine.h"
#include "gpu/matmul_engine.h"
#include "gpu/runtime.h"
#include "model/train_ops.h"

namespace fastserve::gpu {

/// `engines` are asked in order and the last runs everything; `attention` is asked before our
/// kernels, and may be null. They and the runtime must outlive it.
std::unique_ptr<TrainOps> make_train_ops(Runtime& runtime, std::span<MatmulEngine* const> engines,
                                         AttentionEngine* attention, Precision precision);

/// One step of AdamW, and bfloat16 copies of the new parameters (device, op.n) that are rounded up
/// or down at random, with the odds of what is cut off. The range's number i is number `first` + i
/// of the stream that `seed` names: how parameters are cut into calls changes no bit.
void adamw_with_copy(Runtime& runtime, const AdamW& op, BFloat16* copy, uint64_t seed,
                     uint64_t first);

}  // namespace fastserve::gpu
