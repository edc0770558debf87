// A stand-in for cuDNN that computes, on the host and in the plainest loops, what a graph's
// descriptors say: any order of the operations that attention is written in.
#pragma once

#include "gpu/attention_engine.h"

namespace stub_cudnn {

struct State {
  int live = 0;  ///< handles and descriptors not given back
  int plans = 0, executions = 0;
  bool by_atomics = false;  ///< an engine that is noted to change its bits was executed
};
State& state();

/// The engine over it; memory is reached through `runtime`, one at a time.
std::unique_ptr<fastserve::gpu::AttentionEngine> make_attention(fastserve::gpu::Runtime& runtime);

}  // namespace stub_cudnn
