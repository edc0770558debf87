// Inference products, look-up and cross-entropy: shapes, and what they are run on.
#pragma once

#include <fmt/format.h>

#include <numeric>

#include "tests/cpu/op_harness.h"

namespace fastserve::harness::decode_cases {

inline constexpr WeightFormat kFormats[] = {
    WeightFormat::kFloat32,     WeightFormat::kBFloat16,     WeightFormat::kFloat16,
    WeightFormat::kInt8Row,     WeightFormat::kInt8Group32,  WeightFormat::kInt8Group128,
    WeightFormat::kInt4Group32, WeightFormat::kInt4Group128,
};

/// Sets two of every four neighbouring codes to zero.
inline void prune_two_of_four(Rng& rng, QuantisedMatrix& m) {
  for (int row = 0; row < m.rows; ++row)
    for (int col = 0; col < m.cols; col += 4) {
      const int one = static_cast<int>(rng.below(4));
      const int other = (one + 1 + static_cast<int>(rng.below(3))) % 4;
      for (const int zero : {col + one, col + other})
        if (zero < m.cols) m.codes[reference::at(row, m.cols, zero)] = 0;
    }
}

inline QuantisedMatrix random_quantised(Rng& rng, WeightFormat format, int rows, int cols) {
  QuantisedMatrix m;
  m.format = format;
  m.rows = rows;
  m.cols = cols;
  const bool narrow = format_bits(format) == 4;
  const int low = narrow ? (format == WeightFormat::kInt4Group32 ? 0 : 1) : -127;
  const int high = narrow ? 15 : 127;
  for (size_t i = 0; i < reference::at(rows, cols); ++i) {
    const int code = low + static_cast<int>(rng.below(static_cast<uint64_t>(high - low + 1)));
    m.codes.push_back(static_cast<uint8_t>(code));
  }
  const double step = 1.0 / ((narrow ? 4.6 : 73.0) * std::sqrt(static_cast<double>(cols)));
  for (size_t i = 0; i < reference::at(rows, m.groups()); ++i) {
    const float scale = static_cast<float>(step * (0.5 + rng.uniform()));
    m.scales.push_back(format == WeightFormat::kInt8Row ? scale : to_float(to_float16(scale)));
  }
  return m;
}

/// A packed matrix of some parts; the sources need not outlive it.
inline std::unique_ptr<DecodeMatrix> random_matrix(DecodeOps& ops, Rng& rng, WeightFormat format,
                                                   std::span<const int> part_rows, int in,
                                                   bool swiglu, bool pruned = false) {
  std::vector<Array> floats;
  std::vector<QuantisedMatrix> quantised;
  floats.reserve(part_rows.size());
  quantised.reserve(part_rows.size());
  std::vector<DecodeMatrixSource::Part> parts;
  for (const int rows : part_rows) {
    if (is_quantised(format)) {
      quantised.push_back(random_quantised(rng, format, rows, in));
      if (pruned) prune_two_of_four(rng, quantised.back());
      parts.push_back({{}, &quantised.back(), rows});
    } else {
      floats.push_back(random_floats(rng, reference::at(rows, in), 1 / std::sqrt(double(in))));
      parts.push_back({{floats.back().floats(), floats.back().size()}, nullptr, rows});
    }
  }
  auto matrix = ops.make_matrix({parts, in, format, swiglu});
  REQUIRE(matrix.ok());
  return std::move(matrix).value();
}

struct MatmulShape {
  WeightFormat format;
  int rows;
  std::vector<int> parts;
  int in;
  bool pruned = false;  ///< 2:4
  int out() const { return std::accumulate(parts.begin(), parts.end(), 0); }
  std::string text() const {
    return fmt::format("{} [{}, {}] to {}{}", weight_format_name(format), rows, in, out(),
                       pruned ? ", 2:4" : "");
  }
};

inline std::vector<MatmulShape> matmul_shapes() {
  std::vector<MatmulShape> shapes;
  for (const WeightFormat format : kFormats) {
    for (const int rows : {1, 2, 3, 8, 9, 33}) shapes.push_back({format, rows, {64, 32, 32}, 128});
    shapes.push_back({format, 1, {1}, 1});
    shapes.push_back({format, 4, {17}, 33});
    shapes.push_back({format, 1, {300}, 200});
    shapes.push_back({format, 7, {100, 20, 20}, 300});
    shapes.push_back({format, 70, {70}, 96});
    shapes.push_back({format, 1, {1000}, 768});
    shapes.push_back({format, 17, {130}, 1025});
  }
  return shapes;
}

/// Where the activations are quantised after a norm, a last-bit difference may move one code by
/// one: 3 sigma / 127 of one of the terms, below a few 2^-8 of the result. bfloat16 weights may
/// meet activations rounded to bfloat16.
inline double roundings(WeightFormat format, bool normed) {
  if (format == WeightFormat::kBFloat16) return 1.5;
  return is_quantised(format) && normed ? 2 : 0;
}

inline Outputs run_matmul(DecodeOps& ops, const MatmulShape& s) {
  Rng rng(51);
  const int x_ld = s.in + 4, out_ld = s.out() + 5, x_rows = s.rows + 4;
  Array x = random_floats(rng, reference::at(x_rows, x_ld), 2);
  const size_t in = static_cast<size_t>(s.in);
  Array weight = random_floats(rng, in), norm_bias = random_floats(rng, in);
  Array bias = random_floats(rng, static_cast<size_t>(s.out()));
  const auto matrix = random_matrix(ops, rng, s.format, s.parts, s.in, false, s.pruned);
  std::vector<int32_t> gather;
  for (int r = 0; r < s.rows; ++r) gather.push_back(x_rows - 1 - r);
  const DecodeNorm rms{NormKind::kRmsNorm, weight.floats(), nullptr, 1e-5f};
  const DecodeNorm layer{NormKind::kLayerNorm, weight.floats(), norm_bias.floats(), 1e-5f};
  Outputs outputs;
  const auto run = [&](const char* name, const DecodeNorm* norm, bool gathered, const float* b,
                       DecodeEpilogue epilogue) {
    Array out = random_floats(rng, reference::at(s.rows, out_ld));
    ops.matmul({matrix.get(), x.floats(), s.rows, x_ld,
                gathered ? std::span<const int32_t>(gather) : std::span<const int32_t>(), norm, b,
                epilogue, out.floats(), out_ld});
    outputs.push_back(float_output(name, out, 4 * s.in, roundings(s.format, norm != nullptr)));
  };
  run("plain", nullptr, false, nullptr, DecodeEpilogue::kStore);
  run("rms, bias", &rms, false, bias.floats(), DecodeEpilogue::kStore);
  run("add", nullptr, false, bias.floats(), DecodeEpilogue::kAdd);
  run("layer norm, gelu", &layer, false, bias.floats(), DecodeEpilogue::kGelu);
  run("gathered rms", &rms, true, nullptr, DecodeEpilogue::kStore);
  return outputs;
}

/// `rows` rows after a norm by a matrix of one format, some at a time.
class ChunkedProduct {
 public:
  static constexpr int kIn = 200;
  ChunkedProduct(DecodeOps& ops, WeightFormat format, int rows, int out)
      : ops_(ops),
        rows_(rows),
        out_(out),
        x_(random_floats(rng_, reference::at(rows, kIn))),
        weight_(random_floats(rng_, kIn)),
        matrix_(random_matrix(ops, rng_, format, std::span(&out, 1), kIn, false)) {}
  Outputs run(int chunk) {
    const DecodeNorm norm{NormKind::kRmsNorm, weight_.floats(), nullptr, 1e-5f};
    Array out = unwritten_floats(reference::at(rows_, out_));
    for (int r = 0; r < rows_; r += chunk)
      ops_.matmul({matrix_.get(),
                   x_.floats() + r * kIn,
                   std::min(chunk, rows_ - r),
                   kIn,
                   {},
                   &norm,
                   nullptr,
                   DecodeEpilogue::kStore,
                   out.floats() + r * out_,
                   out_});
    return {float_output("out", out, 1)};
  }

 private:
  Rng rng_{55};
  DecodeOps& ops_;
  int rows_, out_;
  Array x_, weight_;
  std::unique_ptr<DecodeMatrix> matrix_;
};

/// The rows one after another, or a few at a time, have the bits that they have all at once.
inline void check_chunks(DecodeOps& ops, WeightFormat format, int rows, int out,
                         std::initializer_list<int> chunks, const std::string& where) {
  ChunkedProduct product(ops, format, rows, out);
  const Outputs whole = product.run(rows);
  for (const int chunk : chunks)
    require_same_bits(fmt::format("{}, {}, chunks of {}", weight_format_name(format), where, chunk),
                      whole, product.run(chunk));
}

inline std::vector<MatmulShape> gated_shapes() {
  std::vector<MatmulShape> shapes;
  for (const WeightFormat format : kFormats)
    for (const auto& [rows, neurons, in] :
         {std::tuple{1, 64, 128}, {1, 1, 3}, {5, 23, 40}, {33, 96, 256}, {9, 176, 64}})
      shapes.push_back({format, rows, {neurons, neurons}, in});
  return shapes;
}

inline Outputs run_gated(DecodeOps& ops, const MatmulShape& s) {
  Rng rng(52);
  Array x = random_floats(rng, reference::at(s.rows, s.in));
  Array weight = random_floats(rng, static_cast<size_t>(s.in));
  Array bias = random_floats(rng, static_cast<size_t>(s.out()));
  const auto matrix = random_matrix(ops, rng, s.format, s.parts, s.in, true, s.pruned);
  const DecodeNorm norm{NormKind::kRmsNorm, weight.floats(), nullptr, 1e-5f};
  Outputs outputs;
  for (const bool biased : {false, true}) {
    Array out = unwritten_floats(reference::at(s.rows, s.parts[0]));
    ops.matmul({matrix.get(),
                x.floats(),
                s.rows,
                s.in,
                {},
                &norm,
                biased ? bias.floats() : nullptr,
                DecodeEpilogue::kSwiGlu,
                out.floats(),
                s.parts[0]});
    outputs.push_back(float_output("gated", out, 8 * s.in, 2 * roundings(s.format, true)));
  }
  return outputs;
}

struct EmbedShape {
  DType type;
  int rows, channels;
  bool positions;
  std::string text() const { return fmt::format("{} {}", dtype_name(type), channels); }
};

inline Outputs run_embed(DecodeOps& ops, const EmbedShape& s) {
  Rng rng(53);
  constexpr int kVocab = 50, kPositions = 20;
  const size_t n = reference::at(kVocab, s.channels);
  const Precision precision = s.type == DType::kBF16  ? Precision::kBFloat16
                              : s.type == DType::kF16 ? Precision::kFloat16
                                                      : Precision::kFloat32;
  Array table = random_compute(rng, precision, n);
  Array positions_table = random_floats(rng, reference::at(kPositions, s.channels));
  std::vector<int32_t> tokens, positions;
  for (int r = 0; r < s.rows; ++r) {
    tokens.push_back(static_cast<int32_t>(rng.below(kVocab)));
    positions.push_back(static_cast<int32_t>(rng.below(kPositions)));
  }
  Array out = unwritten_floats(reference::at(s.rows, s.channels));
  ops.embed({tokens, positions, table.data(), s.type,
             s.positions ? positions_table.floats() : nullptr, out.floats(), s.channels});
  Outputs outputs = {float_output("out", out, 1)};
  outputs[0].exact = true;
  return outputs;
}

struct LossShape {
  int rows, vocab;
  std::string text() const { return fmt::format("{} of {}", rows, vocab); }
};

inline Outputs run_cross_entropy(DecodeOps& ops, const LossShape& s) {
  Rng rng(54);
  const int ld = s.vocab + 3;
  Array logits = random_floats(rng, reference::at(s.rows, ld), 8);
  std::vector<int32_t> targets;
  for (int r = 0; r < s.rows; ++r)
    targets.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(s.vocab))));
  std::vector<double> losses(static_cast<size_t>(s.rows), 77);
  ops.cross_entropy(logits.floats(), s.rows, s.vocab, ld, targets, losses.data());
  return {double_output("losses", losses, s.vocab, 8)};  // logits are of this size
}

}  // namespace fastserve::harness::decode_cases
