// Attention by cuDNN.
#pragma once

#include <memory>

#include "gpu/attention_engine.h"
#include "gpu/cuda/libraries.h"

namespace fastserve::gpu {

/// bfloat16 and half, over sequences of one length without a window; backward by the algorithm that
/// keeps its bits, on compute capability 9.x, which takes room for the square of the tokens: as
/// many sequences at a time as a 64th of the card's memory holds. The library is started, and plans
/// are made, when they are first needed; a shape that it has no plan for, or no room, it does not
/// support, nor anything when it does not start on the card.
std::unique_ptr<AttentionEngine> make_cudnn_attention(const Cudnn& library,
                                                      const std::string& version, Runtime& runtime);

}  // namespace fastserve::gpu
