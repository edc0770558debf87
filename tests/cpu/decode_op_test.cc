// Inference products, embedding look-up and cross-entropy.
#include "tests/cpu/decode_cases.h"

namespace fastserve::harness {

using namespace decode_cases;

TEST_CASE("every path multiplies by every weight format as the reference does") {
  check_decode_op("decode matmul", matmul_shapes(), run_matmul);
}

TEST_CASE("every path gates the MLP as the reference does") {
  check_decode_op("gated MLP", gated_shapes(), run_gated);
}

TEST_CASE("a row's product has the same bits alone and in any batch") {
  for (const WeightFormat format : kFormats)
    for (const Isa isa : paths()) {
      const auto ops = device_of(isa, 1).make_decode_ops();
      Rng rng(55);
      constexpr int kRows = 37, kIn = 200, kOut = 150;
      Array x = random_floats(rng, kRows * kIn);
      Array weight = random_floats(rng, kIn);
      const int rows[] = {kOut};
      const auto matrix = random_matrix(*ops, rng, format, rows, kIn, false);
      const DecodeNorm norm{NormKind::kRmsNorm, weight.floats(), nullptr, 1e-5f};
      const auto run = [&](int chunk) {
        Array out = unwritten_floats(kRows * kOut);
        for (int r = 0; r < kRows; r += chunk)
          ops->matmul({matrix.get(),
                       x.floats() + r * kIn,
                       std::min(chunk, kRows - r),
                       kIn,
                       {},
                       &norm,
                       nullptr,
                       DecodeEpilogue::kStore,
                       out.floats() + r * kOut,
                       kOut});
        return Outputs{float_output("out", out, 1)};
      };
      const Outputs whole = run(kRows);
      for (const int chunk : {1, 2, 3, 7, 8, 9, 16, 31})
        require_same_bits(std::string(weight_format_name(format)) + ", " + isa_name(isa) +
                              ", chunks of " + std::to_string(chunk),
                          whole, run(chunk));
    }
}

TEST_CASE("every path looks embeddings up exactly") {
  std::vector<EmbedShape> shapes;
  for (const DType type : {DType::kF32, DType::kBF16, DType::kF16})
    for (const int channels : {1, 17, 64, 100})
      for (const int rows : {1, 33}) shapes.push_back({type, rows, channels, channels != 64});
  check_decode_op("decode embed", shapes, run_embed);
}

TEST_CASE("every path finds cross-entropy as the reference does") {
  check_decode_op("cross-entropy",
                  std::vector<LossShape>{{1, 2}, {3, 17}, {33, 512}, {2, 5000}, {64, 1000}},
                  run_cross_entropy);
}

}  // namespace fastserve::harness
