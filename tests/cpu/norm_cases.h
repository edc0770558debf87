// Norm, embedding and rotary ops: shapes, and what they are run on.
#pragma once

#include <fmt/format.h>

#include "tests/cpu/op_harness.h"

namespace fastserve::harness::norm_cases {

struct NormShape {
  NormKind kind;
  int rows, channels;
  bool bias, accumulate;
  std::string text() const {
    return fmt::format("{} [{}, {}]", kind == NormKind::kLayerNorm ? "layer" : "rms", rows,
                       channels);
  }
};

inline std::vector<NormShape> norm_shapes() {
  std::vector<NormShape> shapes;
  for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm})
    for (const auto& [rows, channels] : {std::pair{1, 2},
                                         {3, 7},
                                         {5, 16},
                                         {17, 64},
                                         {4, 100},
                                         {33, 128},
                                         {66, 97},
                                         {2, 768},
                                         {1, 1031}}) {
      shapes.push_back({kind, rows, channels, kind == NormKind::kLayerNorm, true});
      shapes.push_back({kind, rows, channels, false, false});
    }
  return shapes;
}

inline Outputs run_norm(TrainOps& ops, const NormShape& s) {
  Rng rng(11);
  const Precision precision = ops.precision();
  const size_t n = reference::at(s.rows, s.channels), c = static_cast<size_t>(s.channels);
  Array x = random_floats(rng, n, 3), weight = random_floats(rng, c), bias = random_floats(rng, c);
  // Numbers that halves hold: a device takes one or the other.
  Array dy = ops.norms_compute_dy() ? random_compute(rng, precision, n)
                                    : random_floats(rng, n, 1, precision);
  Array dx = random_floats(rng, n);
  Array dweight = random_floats(rng, c), dbias = random_floats(rng, c);
  Array dx_sums = random_floats(rng, c);
  for (size_t i = 0; i < n; ++i) x.floats()[i] += 0.5f;
  Array out = unwritten_compute(precision, n), dx_compute = unwritten_compute(precision, n);
  Array stats = unwritten_floats(2 * static_cast<size_t>(s.rows));
  ops.norm_forward({.kind = s.kind,
                    .x = x.floats(),
                    .weight = weight.floats(),
                    .bias = s.bias ? bias.floats() : nullptr,
                    .epsilon = 1e-5f,
                    .rows = s.rows,
                    .channels = s.channels,
                    .out = out.data(),
                    .stats = stats.floats()});
  Outputs outputs = {compute_output("out", precision, out, s.channels),
                     float_output("stats", stats, s.channels)};
  ops.norm_backward({.kind = s.kind,
                     .dy = dy.data(),
                     .x = x.floats(),
                     .weight = weight.floats(),
                     .stats = stats.floats(),
                     .rows = s.rows,
                     .channels = s.channels,
                     .dx = dx.floats(),
                     .accumulate = s.accumulate,
                     .dx_compute = s.accumulate ? dx_compute.data() : nullptr,
                     .dweight = dweight.floats(),
                     .dbias = s.bias ? dbias.floats() : nullptr,
                     .dx_sums = s.accumulate && ops.sums_dx() ? dx_sums.floats() : nullptr});
  if (s.accumulate && !ops.sums_dx())  // the reference's have them
    for (size_t i = 0; i < n; ++i) dx_sums.floats()[i % c] += dx.floats()[i];
  outputs.push_back(float_output("dx", dx, s.channels));
  outputs.back().floor = 1;  // dy less its mean: with two channels nothing is left
  outputs.push_back(compute_output("dx_compute", precision, dx_compute, s.channels));
  outputs.back().floor = 1;
  outputs.push_back(float_output("dweight", dweight, s.rows));
  outputs.push_back(float_output("dbias", dbias, s.rows));
  outputs.push_back(float_output("dx_sums", dx_sums, s.rows));
  outputs.back().floor = 1;
  return outputs;
}

struct EmbedShape {
  int rows, vocab, positions, channels;
  std::string text() const { return fmt::format("[{} of {}, {}]", rows, vocab, channels); }
};

inline Outputs run_embed(TrainOps& ops, const EmbedShape& s) {
  Rng rng(12);
  const size_t c = static_cast<size_t>(s.channels), n = reference::at(s.rows, s.channels);
  const size_t table = static_cast<size_t>(s.vocab) * c;
  const size_t position_table = static_cast<size_t>(s.positions) * c;
  Array tokens_table = random_floats(rng, table),
        positions_table = random_floats(rng, position_table);
  Array out = unwritten_floats(n), dx = random_floats(rng, n);
  Array dtokens = random_floats(rng, table), dpositions = random_floats(rng, position_table);
  std::vector<int32_t> tokens, positions;
  for (int r = 0; r < s.rows; ++r) {
    tokens.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(s.vocab))));
    positions.push_back(s.positions ? r % s.positions : r);
  }
  const bool learned = s.positions > 0;
  ops.embed_forward({tokens, positions, tokens_table.floats(),
                     learned ? positions_table.floats() : nullptr, out.floats(), s.channels});
  ops.embed_backward({tokens, positions, dx.floats(), dtokens.floats(),
                      learned ? dpositions.floats() : nullptr, s.channels});
  Outputs outputs = {float_output("out", out, 1), float_output("dtoken_table", dtokens, 1),
                     float_output("dposition_table", dpositions, 1)};
  for (Output& o : outputs) o.exact = true;
  return outputs;
}

struct RotaryShape {
  HeadShape heads;
  int rows;
  bool norms, table, in_place;
  std::string text() const {
    return fmt::format("{}/{} heads of {}, {} rows{}{}", heads.heads, heads.kv_heads,
                       heads.head_dim, rows, norms ? ", norms" : "", table ? ", table" : "");
  }
};

inline Outputs run_rotary(TrainOps& ops, const RotaryShape& s) {
  Rng rng(13);
  const Precision precision = ops.precision();
  constexpr int kPositions = 9;
  const size_t n = reference::at(s.rows, s.heads.width());
  const size_t dim = static_cast<size_t>(s.heads.head_dim);
  Array in = random_compute(rng, precision, n), separate = unwritten_compute(precision, n);
  Array& out = s.in_place ? in : separate;
  Array table = zero_floats(kPositions * dim);
  for (int p = 0; p < kPositions; ++p)
    for (size_t i = 0; i < dim / 2; ++i) {
      const double angle =
          p * std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
      table.floats()[static_cast<size_t>(p) * dim + i] = static_cast<float>(std::cos(angle));
      table.floats()[static_cast<size_t>(p) * dim + dim / 2 + i] =
          static_cast<float>(std::sin(angle));
    }
  std::vector<int32_t> positions;
  for (int r = 0; r < s.rows; ++r) positions.push_back((r * 5) % kPositions);
  Array q_norm = random_floats(rng, dim), k_norm = random_floats(rng, dim);
  Array dq_norm = random_floats(rng, dim), dk_norm = random_floats(rng, dim);
  Array dqkv = random_compute(rng, precision, n);
  Array stats = zero_floats(reference::at(s.rows, s.heads.heads + s.heads.kv_heads));
  const RotaryForward forward{.shape = s.heads,
                              .in = in.data(),
                              .out = out.data(),
                              .rows = s.rows,
                              .positions = positions,
                              .table = s.table ? table.floats() : nullptr,
                              .q_norm = s.norms ? q_norm.floats() : nullptr,
                              .k_norm = s.norms ? k_norm.floats() : nullptr,
                              .epsilon = 1e-6f,
                              .stats = s.norms ? stats.floats() : nullptr};
  ops.rotary_forward(forward);
  Outputs outputs = {compute_output("out", precision, out, s.heads.head_dim),
                     float_output("stats", stats, s.heads.head_dim)};
  ops.rotary_backward({forward, dqkv.data(), s.norms ? dq_norm.floats() : nullptr,
                       s.norms ? dk_norm.floats() : nullptr});
  outputs.push_back(compute_output("dqkv", precision, dqkv, s.heads.head_dim));
  outputs.back().floor = s.norms ? 1 : 0;
  outputs.push_back(float_output("dq_norm", dq_norm, s.rows * s.heads.heads));
  outputs.push_back(float_output("dk_norm", dk_norm, s.rows * s.heads.kv_heads));
  return outputs;
}

}  // namespace fastserve::harness::norm_cases
