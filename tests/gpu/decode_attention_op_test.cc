// The GPU's attention over a paged cache against the reference, on the emulator.
#include "gpu/kernels/decode_append.cuh"
#include "tests/cpu/decode_attention_cases.h"
#include "tests/gpu/gpu_tests.h"

namespace fastserve::harness {
namespace {

using decode_attention_cases::AttentionShape;
using decode_attention_cases::Chunk;
using decode_attention_cases::kMixed;
using decode_attention_cases::run_attention;

constexpr KvType kTypes[] = {KvType::kFloat16, KvType::kFloat32, KvType::kInt8};

}  // namespace

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
