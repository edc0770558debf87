// Attention by cuDNN.
#pragma once

#include <memory>

#include "gpu/attention_engine.h"
#include "gpu/cuda/libraries.h"

namespace fastserve::gpu {

/// The way forward of bfloat16 and half, over sequences of one length without a window. The library
/// is started, and plans are made, when they are first needed; a shape that it has no plan for it
/// does not support, nor anything when it does not start on the card.
std::unique_ptr<AttentionEngine> make_cudnn_attention(const Cudnn& library,
                                                      const std::string& version, Runtime& runtime);

}  // namespace fastserve::gpu
