#include "gpu/sampling.h"

#include <algorithm>

#include "gpu/kernels/sample.cuh"
#include "gpu/launch.h"

namespace fastserve::gpu {

void start_sampling(Runtime& runtime, const float* logits, int rows, int vocab, int ld,
                    const SampleRow* how, int32_t* tokens) {
  launch_chained(
      runtime,
      {"sample_rows", {static_cast<unsigned>(rows)}, {kSampleThreads}, sizeof(SampleShared)},
      sample_rows, logits, vocab, ld, how, tokens);
}

void feed_tokens(Runtime& runtime, int32_t* tokens, const int32_t* drawn, int rows) {
  constexpr unsigned kThreads = 128;
  const unsigned blocks = (static_cast<unsigned>(rows) + kThreads - 1) / kThreads;
  launch(runtime, {"feed_drawn", {blocks}, {kThreads}}, feed_drawn, tokens, drawn, rows);
}

void sample_tokens(Runtime& runtime, Workspace& workspace, const float* logits, int vocab, int ld,
                   std::span<const SampleRow> rows, std::span<int32_t> tokens) {
  std::fill(tokens.begin(), tokens.end(), -1);
  if (rows.empty() || !workspace.begin(Workspace::room<SampleRow>(rows.size()) +
                                       Workspace::room<int32_t>(rows.size())))
    return;
  const SampleRow* const how = workspace.upload(rows);
  int32_t* const drawn = workspace.take<int32_t>(rows.size());
  start_sampling(runtime, logits, static_cast<int>(rows.size()), vocab, ld, how, drawn);
  runtime.copy_out(tokens.data(), drawn, tokens.size_bytes());
}

}  // namespace fastserve::gpu
