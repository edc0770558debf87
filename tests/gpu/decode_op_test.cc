// The GPU's products with inference weights and its lookups against the reference, on the emulator.
#include "tests/cpu/decode_cases.h"
#include "tests/gpu/gpu_tests.h"

namespace fastserve::harness {
using decode_cases::kFormats;

TEST_CASE("the GPU multiplies by every weight format as the reference does") {
  std::vector<decode_cases::MatmulShape> shapes;
  for (const WeightFormat format : kFormats) {
    shapes.push_back({format, 1, {1}, 1});
    shapes.push_back({format, 4, {17}, 33});
    shapes.push_back({format, 7, {100, 20, 20}, 300});
    shapes.push_back({format, 33, {24}, 96});
    shapes.push_back({format, 9, {64, 32, 32}, 1100});
    shapes.push_back({format, 69, {100, 40, 6}, 300});  // some row and output tiles are half there
    shapes.push_back({format, 130, {17}, 1200});        // ten units in eight slices
  }
  check_gpu_decode_op("decode matmul", shapes, decode_cases::run_matmul);
}

TEST_CASE("few rows take turns with more outputs than a card computes at once") {
  std::vector<decode_cases::MatmulShape> shapes;
  for (const WeightFormat format : kFormats) {  // the emulated card runs twelve blocks
    shapes.push_back({format, 3, {500, 41}, 1100});
    shapes.push_back({format, 6, {330}, 300});
    shapes.push_back({format, 20, {420}, 130});
  }
  check_gpu_decode_op("decode matmul", shapes, decode_cases::run_matmul);
}

TEST_CASE("the GPU gates the MLP as the reference does") {
  std::vector<decode_cases::MatmulShape> shapes;
  for (const WeightFormat format : kFormats)
    for (const auto& [rows, neurons, in] : {std::tuple{1, 1, 3}, {5, 23, 40}, {33, 20, 130}})
      shapes.push_back({format, rows, {neurons, neurons}, in});
  check_gpu_decode_op("gated MLP", shapes, decode_cases::run_gated);
}

TEST_CASE("cards with less shared memory multiply in the same bits") {
  const auto device = emulated_gpu(), less = emulated_gpu({.shared_memory = size_t{163} << 10}),
             least = emulated_gpu({.shared_memory = size_t{99} << 10});
  for (const WeightFormat format : kFormats)
    for (const int rows : {1, 7, 20, 150}) {
      const decode_cases::MatmulShape shape{format, rows, {200, 33}, 260};
      const Outputs expected = decode_cases::run_matmul(*device->make_decode_ops(), shape);
      for (Device* other : {less.get(), least.get()}) {
        require_same_bits(shape.text(), expected,
                          decode_cases::run_matmul(*other->make_decode_ops(), shape));
        CHECK(other->sync().ok());
      }
    }
}

TEST_CASE("a number that is not finite spoils its own row's product on the GPU, and no other's") {
  const auto device = emulated_gpu();
  const auto ops = device->make_decode_ops();
  constexpr int kIn = 200;
  const int out_rows[] = {20};
  for (const WeightFormat format : kFormats)
    for (const float bad : {NAN, INFINITY})
      for (const int rows : {3, 40}) {
        Rng rng(57);
        const auto matrix = decode_cases::random_matrix(*ops, rng, format, out_rows, kIn, false);
        Array x = random_floats(rng, reference::at(rows, kIn));
        x.floats()[kIn + 7] = bad;
        Array out = unwritten_floats(reference::at(rows, 20));
        ops->matmul({matrix.get(),
                     x.floats(),
                     rows,
                     kIn,
                     {},
                     nullptr,
                     nullptr,
                     DecodeEpilogue::kStore,
                     out.floats(),
                     20});
        bool as_it_should = true;
        for (int i = 0; i < rows * 20; ++i)
          as_it_should = as_it_should && std::isfinite(out.floats()[i]) == (i / 20 != 1);
        CHECK_MESSAGE(as_it_should, weight_format_name(format) << ", " << rows << " rows, " << bad);
      }
  CHECK(device->sync().ok());
}

TEST_CASE("the GPU leaves out what 2:4 pruning left, and multiplies as the reference does") {
  std::vector<decode_cases::MatmulShape> shapes, gated;
  for (const WeightFormat format : {WeightFormat::kInt8Row, WeightFormat::kInt8Group128}) {
    shapes.push_back({format, 1, {1}, 1, true});
    shapes.push_back({format, 9, {17, 30}, 300, true});
    shapes.push_back({format, 70, {100, 40}, 1100, true});
    gated.push_back({format, 3, {23, 23}, 200, true});
    gated.push_back({format, 40, {70, 70}, 130, true});
  }
  check_gpu_decode_op("decode matmul", shapes, decode_cases::run_matmul);
  check_gpu_decode_op("gated MLP", gated, decode_cases::run_gated);
}

TEST_CASE("a 2:4 matrix on the GPU takes 5 bits a weight, and gives the bits of one that takes 8") {
  const auto device = emulated_gpu();
  const auto ops = device->make_decode_ops();
  constexpr int kIn = 384, kOut = 48, kRows = 35;
  Rng rng(56);
  Array x = random_floats(rng, kRows * kIn);
  for (const WeightFormat format : {WeightFormat::kInt8Row, WeightFormat::kInt8Group128}) {
    QuantisedMatrix pruned = decode_cases::random_quantised(rng, format, kOut, kIn);
    decode_cases::prune_two_of_four(rng, pruned);
    const QuantisedMatrix dense = decode_cases::random_quantised(rng, format, 16, kIn);
    const DecodeMatrixSource::Part parts[] = {{{}, &pruned, kOut}, {{}, &dense, 16}};
    const auto sparse = ops->make_matrix({{parts, 1}, kIn, format, false}).value();
    const auto whole = ops->make_matrix({parts, kIn, format, false}).value();
    const size_t scales = whole->bytes() - (kOut + 16) * kIn;
    CHECK(sparse->bytes() == kOut * kIn * 5 / 8 + scales * kOut / (kOut + 16));
    for (const int rows : {5, kRows}) {
      std::vector<float> found[2];
      for (int i = 0; i < 2; ++i) {
        const DecodeMatrix& w = i == 0 ? *sparse : *whole;
        Array out = unwritten_floats(static_cast<size_t>(rows * w.out()));
        ops->matmul({&w,
                     x.floats(),
                     rows,
                     kIn,
                     {},
                     nullptr,
                     nullptr,
                     DecodeEpilogue::kStore,
                     out.floats(),
                     w.out()});
        for (int r = 0; r < rows; ++r)
          found[i].insert(found[i].end(), out.floats() + r * w.out(),
                          out.floats() + r * w.out() + kOut);
      }
      CHECK(found[0] == found[1]);
    }
  }
  CHECK(device->sync().ok());
}

TEST_CASE("a row's product on the GPU has the same bits alone and in any batch") {
  const auto device = emulated_gpu();
  const auto ops = device->make_decode_ops();
  for (const WeightFormat format : kFormats)
    // Up to four rows every block prepares its activations itself, from there on another kernel.
    decode_cases::check_chunks(*ops, format, 37, 40, {1, 2, 3, 4, 5, 9, 31}, "GPU");
  // A prompt's length, in tiles of 128 rows and of 64, and what a decoding step has.
  for (const WeightFormat format : {WeightFormat::kBFloat16, WeightFormat::kInt4Group32})
    decode_cases::check_chunks(*ops, format, 150, 300, {40, 8}, "GPU");
  CHECK(device->sync().ok());
}

TEST_CASE("the GPU looks embeddings up exactly and finds cross-entropy") {
  std::vector<decode_cases::EmbedShape> shapes;
  for (const DType type : {DType::kF32, DType::kBF16, DType::kF16})
    for (const int channels : {1, 17, 64}) shapes.push_back({type, 9, channels, channels != 64});
  check_gpu_decode_op("decode embed", shapes, decode_cases::run_embed);
  check_gpu_decode_op("cross-entropy",
                      std::vector<decode_cases::LossShape>{{1, 2}, {3, 17}, {2, 5000}, {9, 512}},
                      decode_cases::run_cross_entropy);
}

}  // namespace fastserve::harness
