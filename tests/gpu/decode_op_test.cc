// The GPU's inference operations against the reference, on the emulator.
#include "gpu/kernels/decode_append.cuh"
#include "tests/cpu/decode_attention_cases.h"
#include "tests/cpu/decode_cases.h"
#include "tests/gpu/gpu_tests.h"

namespace fastserve::harness {
namespace {

using decode_attention_cases::AttentionShape;
using decode_attention_cases::Chunk;
using decode_attention_cases::kMixed;
using decode_attention_cases::run_attention;
using decode_cases::kFormats;

constexpr KvType kTypes[] = {KvType::kFloat16, KvType::kFloat32, KvType::kInt8};

/// Against the reference in one order, then the same bits in others.
template <class Shape, class Run>
void check_gpu_decode_op(const std::string& op, const std::vector<Shape>& shapes, const Run& run) {
  const auto device = emulated_gpu();
  check_decode_op_on(*device, op, shapes, run);
  const Outputs expected = run(*device->make_decode_ops(), shapes.back());
  for (const simt::Options& options : unlike_orders()) {
    const auto other = emulated_gpu(options);
    require_same_bits(op + " in another order", expected,
                      run(*other->make_decode_ops(), shapes.back()));
    CHECK(other->sync().ok());
  }
}

}  // namespace

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

TEST_CASE("the GPU attends over a paged cache as the reference does") {
  std::vector<AttentionShape> shapes;
  const std::vector<std::vector<Chunk>> far = {
      {{0, 0, 259}, {1, 0, 1}}, {{0, 259, 1}, {1, 1, 7}}, {{0, 260, 1}}};
  const std::vector<std::vector<Chunk>> farther = {{{0, 0, 300}}, {{0, 300, 290}}, {{0, 590, 1}}};
  for (const KvType type : kTypes) {
    shapes.push_back({{4, 1, 64}, 16, type, 0, true, true, kMixed});
    shapes.push_back({{6, 2, 16}, 16, type, 9, true, false, kMixed});
    shapes.push_back({{6, 2, 16}, 12, type, 9, true, false, kMixed});
    shapes.push_back({{1, 1, 10}, 16, type, 0, true, true, kMixed});
    shapes.push_back({{2, 1, 5}, 16, type, 0, false, true, kMixed});
    shapes.push_back({{3, 1, 24}, 16, type, 0, false, false, far});
    shapes.push_back({{2, 1, 128}, 16, type, 0, true, false, far});
    shapes.push_back({{1, 1, 160}, 32, type, 0, false, false, kMixed});
    shapes.push_back({{1, 1, 130}, 16, type, 0, true, false, {{{0, 0, 21}}}});
    shapes.push_back({{8, 1, 80}, 16, type, 100, true, false, far});
  }
  const std::vector<std::vector<Chunk>> parts = {{{0, 0, 21}}, {{0, 21, 1}, {1, 0, 6}}};
  shapes.push_back({{5, 1, 256}, 16, KvType::kFloat16, 0, true, true, parts});
  shapes.push_back({{3, 1, 192}, 16, KvType::kInt8, 0, true, true, parts});
  shapes.push_back({{14, 2, 96}, 8, KvType::kInt8, 30, false, false, kMixed});
  shapes.push_back({{35, 1, 32}, 16, KvType::kFloat16, 0, true, false, kMixed});
  shapes.push_back({{2, 1, 16}, 16, KvType::kInt8, 280, true, false, farther, 600});
  check_gpu_decode_op("decode attention", shapes, run_attention);
}

TEST_CASE("a quotient by a number that is known when a kernel is started is exact") {
  constexpr int kMost = 0x7fffffff;
  for (const int by : {1, 2, 3, 4, 5, 7, 12, 16, 24, 641, 4096, 65537, kMost / 2, kMost}) {
    const gpu::Divisor divisor = gpu::Divisor::of(by);
    const auto check = [&](int n) {
      CAPTURE(n);
      CHECK(divisor.quotient(n) == n / by);
    };
    for (const int n : {0, 1, by - 1, by, kMost / by * by, kMost / by * by - 1, kMost}) check(n);
    for (int n = 1; n < kMost / 3; n = n * 3 + 1) check(n);
  }
}

TEST_CASE("a paged cache is attended over in the same bits on cards with less shared memory") {
  const auto device = emulated_gpu(), least = emulated_gpu({.shared_memory = size_t{99} << 10});
  for (const KvType type : kTypes)
    for (const HeadShape& heads : {HeadShape{6, 1, 128}, {1, 1, 256}, {20, 1, 256}}) {
      const AttentionShape s{
          heads, 16, type, 70, true, true, {{{0, 0, 140}}, {{0, 140, 1}, {1, 0, 9}}, {{1, 9, 1}}}};
      require_same_bits(s.text(), run_attention(*device->make_decode_ops(), s),
                        run_attention(*least->make_decode_ops(), s));
      CHECK(least->sync().ok());
    }
}

TEST_CASE("a prompt's attention on the GPU has the same bits whole, in chunks and token by token") {
  // Past the length at which few rows are split over blocks and many are not.
  constexpr int kTokens = 560;
  const auto device = emulated_gpu();
  const auto ops = device->make_decode_ops();
  const auto from = [](std::vector<std::vector<Chunk>> batches, int next) {
    for (int t = next; t < kTokens; ++t) batches.push_back({{0, t, 1}});
    return batches;  // alone, a row's key and value are appended by the kernel that attends
  };
  const std::vector<std::vector<std::vector<Chunk>>> cuts = {
      {{{0, 0, 5}}, {{0, 5, 16}}, {{0, 21, kTokens - 21}}},
      {{{1, 0, 3}, {0, 0, 301}}, {{0, 301, 200}, {2, 0, 30}, {1, 3, 1}}, {{0, 501, kTokens - 501}}},
      from({{{0, 0, 510}}}, 510)};
  std::vector<std::tuple<HeadShape, KvType, int>> cases = {{{6, 1, 16}, KvType::kFloat16, 0},
                                                           {{20, 1, 16}, KvType::kInt8, 140}};
#if !defined(__SANITIZE_THREAD__)  // where all of this takes minutes
  cases.push_back({{1, 1, 64}, KvType::kFloat16, 300});
  cases.push_back({{2, 1, 16}, KvType::kFloat32, 0});
#endif
  for (const auto& [heads, type, window] : cases) {
    AttentionShape s{heads, 16, type, window, true, true, {{{0, 0, kTokens}}}, 600};
    const Outputs whole = run_attention(*ops, s);
    for (const auto& cut : cuts) {
      s.batches = cut;
      Outputs got = run_attention(*ops, s);
      for (size_t layer = 0; layer < 2; ++layer) {  // the other sequences are company
        const size_t each = whole[0].values.size() / 6, at = layer * 3 * each;
        std::copy_n(whole[0].values.begin() + std::ptrdiff_t(at + each), 2 * each,
                    got[0].values.begin() + std::ptrdiff_t(at + each));
      }
      require_same_bits("a prompt in pieces, " + s.text(), whole, got);
    }
  }
  CHECK(device->sync().ok());
}

TEST_CASE("rows attend in the same bits among more prompts than have blocks of many rows") {
  const auto device = emulated_gpu();
  const auto ops = device->make_decode_ops();
  for (const KvType type : kTypes) {
    // Sequence 0 over and over: its pieces are short prompts of the same text.
    AttentionShape s{{4, 2, 16}, 16, type, 0, true, false, {{}}};
    int next[3] = {};
    for (int i = 0; i < 27; ++i) {
      const int sequence = i % 3, rows = 1 + i % 4;
      s.batches.back().push_back({sequence, next[sequence], rows});
      next[sequence] += rows;
    }
    const Outputs together = run_attention(*ops, s);
    s.batches.clear();
    for (int sequence = 0; sequence < 3; ++sequence)
      s.batches.push_back({{sequence, 0, next[sequence]}});
    require_same_bits("many short prompts", together, run_attention(*ops, s));
  }
  CHECK(device->sync().ok());
}

TEST_CASE("queries, keys and values of any size are attended over on the GPU") {
  std::vector<AttentionShape> shapes;
  for (const KvType type : kTypes)
    for (const float by : {1e-6f, 1e-4f, 300.0f}) {
      AttentionShape s{{2, 1, 32}, 16, type, 0, false, false, kMixed};
      s.change = [by](float* row, int, int) {
        for (int i = 0; i < 64; ++i) row[i] /= by;
        for (int i = 64; i < 128; ++i) row[i] *= by;
      };
      if (by > 1 || type != KvType::kFloat16) shapes.push_back(s);
    }
  check_gpu_decode_op("decode attention", shapes, run_attention);
}

TEST_CASE(
    "a value that is not finite spoils the rows of a prompt that see it, and no other's bits") {
  const auto device = emulated_gpu();
  const auto ops = device->make_decode_ops();
  struct Spoilt {
    float bad;
    KvType type;
  };
  // Of halves a number is spoilt; a whole value where all have one scale.
  for (const auto& [bad, type] : {Spoilt{1e6f, KvType::kFloat16},
                                  {-INFINITY, KvType::kFloat16},
                                  {NAN, KvType::kFloat16},
                                  {-INFINITY, KvType::kInt8},
                                  {NAN, KvType::kInt8}})
    for (const auto& [heads, window] :
         {std::pair{HeadShape{4, 1, 16}, 0}, {{1, 1, type == KvType::kInt8 ? 80 : 72}, 20}}) {
      constexpr int kAt = 37, kRows = 70;
      AttentionShape s{heads, 16, type, window, false, false, {{{0, 0, kRows}}}};
      s.change = [&](float* row, int, int position) {
        if (position == kAt) row[(heads.heads + 1) * heads.head_dim + 3] = bad;
      };
      const Outputs whole = run_attention(*ops, s);
      s.batches.clear();
      for (int t = 0; t < kRows; ++t) s.batches.push_back({{0, t, 1}});
      const Outputs alone = run_attention(*ops, s);
      bool same = true, as_it_should = true;
      const int width = heads.heads * heads.head_dim;
      for (int t = 0; t < kRows; ++t)
        for (int c = 0; c < width; ++c) {
          const size_t i = reference::at(t, width, c);
          const double a = whole[0].values[i], b = alone[0].values[i];
          same = same && (std::isnan(a) ? std::isnan(b) : a == b);
          const bool sees = t >= kAt && (window == 0 || t < kAt + window);
          as_it_should =
              as_it_should &&
              std::isfinite(a) == !(sees && (type == KvType::kInt8 || c % heads.head_dim == 3));
        }
      CHECK(same);
      CHECK(as_it_should);
    }
  CHECK(device->sync().ok());
}

}  // namespace fastserve::harness
