// Weights on their way to the card, piece by piece.
#include "gpu/staging.h"

#include <map>

#include "gpu/decode_ops.h"
#include "gpu/weight_memory.h"
#include "tests/cpu/decode_cases.h"
#include "tests/gpu/gpu_tests.h"

namespace fastserve::harness {
namespace {

std::vector<std::byte> some_bytes(size_t n) {
  Rng rng(n + 1);
  std::vector<std::byte> bytes(n);
  for (std::byte& b : bytes) b = static_cast<std::byte>(rng.below(256));
  return bytes;
}

}  // namespace

TEST_CASE("bytes reach the card whole, whatever the pieces, and may change once they are taken") {
  const auto runtime = simt::make_emulated_runtime();
  gpu::Staging staging(*runtime, 1000);
  for (const size_t n : {size_t{1}, size_t{999}, size_t{1000}, size_t{12345}}) {
    std::vector<std::byte> bytes = some_bytes(n), back(n);
    const std::vector<std::byte> expected = bytes;
    void* const memory = runtime->allocate(n).value();
    REQUIRE(staging.copy(memory, bytes.data(), n).ok());
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
    runtime->copy_out(back.data(), memory, n);
    CHECK(back == expected);
    runtime->free(memory);
  }
  const size_t before = runtime->available();
  staging.release();
  CHECK(runtime->available() == before);  // bytes that need no work on the card took none of it
  CHECK(runtime->sync().ok());
}

TEST_CASE("rows pass through the card's side in multiples of a unit, and it is given back") {
  const auto runtime = simt::make_emulated_runtime();
  const size_t all = runtime->available();
  gpu::Staging staging(*runtime, 200);
  std::vector<std::pair<size_t, size_t>> taken;
  std::vector<std::byte> back(21 * 10);
  const Status status = staging.rows(
      21, 10, 4,
      [](const gpu::Staging::Rows& rows) {
        for (size_t row = rows.first; row < rows.first + rows.count; ++row)
          std::fill_n(rows.piece + (row - rows.of) * 10, 10, static_cast<std::byte>(row));
      },
      [&](size_t first, size_t count, const void* staged) {
        taken.push_back({first, count});
        runtime->copy_out(back.data() + first * 10, staged, count * 10);
      });
  REQUIRE(status.ok());
  CHECK(taken == std::vector<std::pair<size_t, size_t>>{{0, 20}, {20, 1}});
  for (size_t i = 0; i < back.size(); ++i) CHECK(back[i] == static_cast<std::byte>(i / 10));
  staging.release();
  CHECK(runtime->available() == all);
  CHECK(runtime->sync().ok());
}

TEST_CASE("a load of few bytes passes through less memory than a load of many") {
  const auto runtime = simt::make_emulated_runtime();
  const size_t all = runtime->available();
  const auto taken = [&](uint64_t expected) {
    gpu::Staging staging(*runtime);
    staging.expect(expected);
    const auto status = staging.rows(
        5000, 1000, 16, [](const gpu::Staging::Rows&) {}, [](size_t, size_t, const void*) {});
    CHECK(status.ok());
    return (all - runtime->available()) >> 20;
  };
  CHECK(taken(150'000'000) == 8);
  CHECK(taken(1'180'000'000) == 16);
  CHECK(taken(70'000'000'000) == 16);
  CHECK(runtime->available() == all);
}

TEST_CASE("a load's pinned memory is kept for the next one, of two loads' at the most") {
  const auto runtime = simt::make_emulated_runtime();
  gpu::PinnedShelf shelf(2 * 8 * 1024);
  const auto load = [&](gpu::Staging& staging) {
    const std::vector<std::byte> bytes = some_bytes(5000);
    std::vector<std::byte> back(bytes.size());
    void* const memory = runtime->allocate(bytes.size()).value();
    REQUIRE(staging.copy(memory, bytes.data(), bytes.size()).ok());
    runtime->copy_out(back.data(), memory, bytes.size());
    CHECK(back == bytes);
    runtime->free(memory);
  };
  {
    gpu::Staging first(*runtime, 1024, &shelf), second(*runtime, 1024, &shelf),
        third(*runtime, 1024, &shelf);
    for (gpu::Staging* staging : {&first, &second, &third}) load(*staging);
    CHECK(shelf.take(1) == nullptr);  // all of it is in use
  }
  CHECK(shelf.take(8 * 1024 + 1) == nullptr);
  auto kept = shelf.take(1), another = shelf.take(8 * 1024);
  REQUIRE(kept);
  REQUIRE(another);
  CHECK(shelf.take(1) == nullptr);
  const void* const place = kept->data();
  shelf.put(std::move(kept));
  {
    gpu::Staging next(*runtime, 1024, &shelf);
    load(next);
    CHECK(shelf.take(1) == nullptr);
  }
  kept = shelf.take(8 * 1024);
  REQUIRE(kept);
  CHECK(kept->data() == place);
  shelf.put(std::make_unique<gpu::HostBlock>(100));  // not pinned: not worth keeping
  CHECK(shelf.take(1) == nullptr);
  CHECK(runtime->sync().ok());
}

TEST_CASE("a matrix has the same bits however many pieces it was loaded in") {
  const auto runtime = simt::make_emulated_runtime();
  const auto whole = gpu::make_decode_ops(*runtime), pieces = gpu::make_decode_ops(*runtime, 1500);
  for (const WeightFormat format : decode_cases::kFormats) {
    const decode_cases::MatmulShape shape{format, 3, {37, 20, 20}, 70};
    require_same_bits(weight_format_name(format), decode_cases::run_matmul(*whole, shape),
                      decode_cases::run_matmul(*pieces, shape));
    const decode_cases::MatmulShape gated{format, 3, {21, 21}, 70};
    require_same_bits(weight_format_name(format), decode_cases::run_gated(*whole, gated),
                      decode_cases::run_gated(*pieces, gated));
  }
  CHECK(runtime->sync().ok());
}

TEST_CASE("floats that are given as they are stored become the matrix that their values make") {
  const auto runtime = simt::make_emulated_runtime();
  const auto ops = gpu::make_decode_ops(*runtime, 1500);
  REQUIRE(ops->takes_stored());
  constexpr int kRows = 3, kIn = 70, kOut = 37;
  Rng rng(4);
  Array x = random_floats(rng, kRows * kIn);
  const auto product = [&](const DecodeMatrix& matrix) {
    Array out = unwritten_floats(kRows * kOut);
    ops->matmul({&matrix,
                 x.floats(),
                 kRows,
                 kIn,
                 {},
                 nullptr,
                 nullptr,
                 DecodeEpilogue::kStore,
                 out.floats(),
                 kOut});
    return Outputs{float_output("out", out, 1)};
  };
  for (const DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
    Array values = random_floats(rng, kOut * kIn);
    const Tensor tensor = Tensor::from_floats({kOut, kIn}, {values.floats(), kOut * kIn}, type);
    std::vector<float> exact(kOut * kIn);
    tensor.view().read_floats(0, exact);
    for (const WeightFormat format :
         {WeightFormat::kFloat32, WeightFormat::kFloat16, WeightFormat::kBFloat16}) {
      DecodeMatrixSource::Part given{{}, nullptr, kOut, tensor.bytes, type};
      DecodeMatrixSource::Part plain{exact, nullptr, kOut};
      const auto stored = ops->make_matrix({{&given, 1}, kIn, format, false});
      const auto floats = ops->make_matrix({{&plain, 1}, kIn, format, false});
      REQUIRE(stored.ok());
      REQUIRE(floats.ok());
      require_same_bits(weight_format_name(format), product(**floats), product(**stored));
    }
  }
  CHECK(runtime->sync().ok());
}

TEST_CASE("a card without room for a matrix says so, and nothing is left on it") {
  simt::Options options;
  options.memory = 64 << 10;
  const auto runtime = simt::make_emulated_runtime(options);
  const size_t all = runtime->available();
  {
    const auto ops = gpu::make_decode_ops(*runtime, 1500);
    const std::vector<float> floats(300 * 200);
    DecodeMatrixSource::Part part{floats, nullptr, 300};
    const auto matrix = ops->make_matrix({{&part, 1}, 200, WeightFormat::kFloat32, false});
    REQUIRE_FALSE(matrix.ok());
    CHECK(matrix.error().code == ErrorCode::kResourceExhausted);
  }
  CHECK(runtime->available() == all);
}

TEST_CASE("matrices share the card's allocations where there is room, and give all of it back") {
  simt::Options options;
  options.memory = size_t{1} << 20;
  const auto runtime = simt::make_emulated_runtime(options);
  const size_t all = runtime->available();
  for (const size_t expected : {size_t{100'000}, size_t{600'000}}) {
    CAPTURE(expected);
    gpu::WeightMemory memory(*runtime);
    memory.expect(expected);
    std::vector<gpu::WeightMemory::Piece> pieces;
    std::map<const void*, size_t> places;
    for (const size_t bytes : {20'224, 1'000, 0, 70'000, 9'000, 1, 24'000})
      pieces.push_back(memory.take(bytes).value());
    for (const auto& piece : pieces)
      if (piece.bytes() > 0) places[piece.data()] = piece.bytes();
    CHECK(places.size() == 6);
    size_t end = 0;
    for (const auto& [place, bytes] : places) {
      CHECK(reinterpret_cast<size_t>(place) % 256 == 0);
      CHECK(reinterpret_cast<size_t>(place) >= end);
      end = reinterpret_cast<size_t>(place) + bytes;
    }
    const auto apart =
        static_cast<std::byte*>(pieces[1].data()) - static_cast<std::byte*>(pieces[0].data());
    CHECK((apart == 20'224) == (expected == 100'000));
    // The card has not twice what is expected: nothing is taken that may be left over.
    if (expected == 600'000) CHECK(all - runtime->available() < 124'225 + 6 * 4096);
    memory.finish();
    pieces.clear();
    CHECK(runtime->available() == all);
    CHECK(memory.take(2'000'000).error().code == ErrorCode::kResourceExhausted);
  }
  CHECK(runtime->sync().ok());
}

TEST_CASE("threads fill each part of a granted piece once, and no piece that was not granted") {
  constexpr size_t kAhead = 3, kPieces = 50;
  for (const size_t parts : {size_t{1}, size_t{7}}) {
    gpu::FillThreads threads(kAhead, 5);
    for (int job = 0; job < 20; ++job) {
      std::vector<std::atomic<int>> filled(kPieces * parts);
      std::atomic<size_t> granted = 0;
      std::atomic<bool> early = false;
      threads.begin(parts, [&](size_t piece, size_t part) {
        if (piece >= granted) early = true;
        ++filled[piece * parts + part];
      });
      for (size_t piece = 0; piece < kPieces; ++piece) {
        while (granted < std::min(kPieces, piece + kAhead)) {
          ++granted;
          threads.grant();
        }
        threads.finish();
        for (size_t part = 0; part < parts; ++part) CHECK(filled[piece * parts + part] == 1);
      }
      CHECK_FALSE(early);
    }
  }
}

}  // namespace fastserve::harness
