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
      check_chunks(*ops, format, 37, 150, {1, 2, 3, 7, 8, 9, 16, 31}, isa_name(isa));
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
