// Attention of packed sequences: shapes, and what it is run on.
#pragma once

#include <fmt/format.h>

#include "tests/cpu/op_harness.h"

namespace fastserve::harness::attention_cases {

struct AttentionShape {
  HeadShape heads;
  std::vector<int32_t> lengths;
  int window;
  double sharpness = 1;  ///< scale of the scores: large ones make softmax pick single rows
  std::string text() const {
    return fmt::format("{}/{} heads of {}, lengths {}, window {}", heads.heads, heads.kv_heads,
                       heads.head_dim, fmt::join(lengths, " "), window);
  }
};

inline const std::vector<AttentionShape> kShapes = {
    {{1, 1, 1}, {1}, 0},       {{1, 1, 5}, {3}, 0},           {{1, 1, 16}, {1}, 0},
    {{2, 2, 64}, {64, 64}, 0}, {{4, 4, 32}, {64, 64, 64}, 0}, {{4, 2, 16}, {5, 17, 1}, 0},
    {{3, 3, 24}, {33}, 0},     {{4, 1, 80}, {70}, 0},         {{2, 2, 32}, {100}, 16},
    {{2, 1, 32}, {67, 2}, 1},  {{6, 2, 64}, {130, 31}, 50},   {{2, 1, 128}, {40, 3}, 0},
    {{1, 1, 64}, {300}, 0},    {{2, 2, 20}, {47}, 1000},      {{2, 2, 64}, {90}, 0, 30},
    {{7, 7, 33}, {19, 21}, 0},
};

inline Outputs run_attention(TrainOps& ops, const AttentionShape& s) {
  Rng rng(31);
  const Precision precision = ops.precision();
  std::vector<int32_t> starts = {0};
  int longest = 0;
  for (int32_t n : s.lengths) {
    starts.push_back(starts.back() + n);
    longest = std::max(longest, n);
  }
  const int rows = starts.back(), width = s.heads.heads * s.heads.head_dim;
  const size_t n = reference::at(rows, width), wide = reference::at(rows, s.heads.width());
  Array qkv = random_compute(rng, precision, wide), dout = random_compute(rng, precision, n);
  Array out = unwritten_compute(precision, n), dqkv = unwritten_compute(precision, wide);
  Array alone = unwritten_compute(precision, n);
  Array stats = unwritten_floats(2 * static_cast<size_t>(rows * s.heads.heads));
  AttentionForward forward{
      .shape = s.heads,
      .qkv = qkv.data(),
      .out = out.data(),
      .stats = stats.floats(),
      .starts = starts,
      .window = s.window,
      .scale = static_cast<float>(s.sharpness / std::sqrt(double(s.heads.head_dim)))};
  ops.attention_forward(forward);
  ops.attention_backward({forward, dout.data(), dqkv.data()});
  // Outputs are averages of values of size 1, so each rounding of a probability moves them by up to
  // a unit of 1, however small the average comes out: hence the floor. Backward rounds
  // probabilities and then the scores' gradients.
  const double terms = (longest + s.heads.head_dim) * s.sharpness * s.sharpness;
  Outputs outputs = {compute_output("out", precision, out, terms, 1),
                     compute_output("dqkv", precision, dqkv, terms, 2 * s.sharpness)};
  forward.out = alone.data();
  forward.stats = nullptr;
  ops.attention_forward(forward);
  outputs.push_back(compute_output("out without stats", precision, alone, terms, 1));
  for (Output& o : outputs) o.floor = 1;
  return outputs;
}

}  // namespace fastserve::harness::attention_cases
