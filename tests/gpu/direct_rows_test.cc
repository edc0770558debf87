// Weights that the card copies from where they lie in pinned memory.
#include "gpu/direct_rows.h"

#include <cstring>
#include <deque>
#include <functional>
#include <optional>

#include "gpu/decode_ops.h"
#include "model/decoder.h"
#include "model/preloaded.h"
#include "tests/cpu/decode_cases.h"
#include "tests/gpu/gpu_tests.h"
#include "tests/transformer/tiny_models.h"

namespace fastserve::harness {
namespace {

/// A card whose copies beside the work land at once, and whose work is done when it is waited for,
/// no sooner.
class LateCard final : public gpu::Runtime {
 public:
  const gpu::DeviceProperties& properties() const override { return properties_; }
  gpu::StreamHandle stream() const override { return nullptr; }
  Result<void*> allocate(size_t bytes) override {
    memory_.push_back(std::make_unique<gpu::HostBlock>(bytes));
    return memory_.back()->data();
  }
  void free(void*) override { memory_.clear(); }
  size_t available() const override { return size_t{1} << 40; }
  bool copy_in(void*, const void*, size_t) override { return false; }
  gpu::Ticket copy_in_async(void* device, const void* pinned, size_t bytes) override {
    work_.push_back([=] { std::memcpy(device, pinned, bytes); });
    return mark();
  }
  void copy_in_beside(void* device, const void* host, size_t bytes) override {
    if (bytes == 0) return;
    std::memcpy(device, host, bytes);
    copies.push_back(bytes);
  }
  gpu::Ticket mark() override { return done_ + work_.size(); }
  void wait(gpu::Ticket ticket) override {
    for (; done_ < ticket && !work_.empty(); ++done_, work_.pop_front()) work_.front()();
  }
  void work(std::function<void()> later) { work_.push_back(std::move(later)); }
  bool idle() const { return work_.empty() && memory_.empty(); }
  void copy_out(void*, const void*, size_t) override {}
  void fill_zero(void*, size_t) override {}
  void begin_capture() override {}
  Result<std::unique_ptr<gpu::Graph>> end_capture() override {
    return std::unique_ptr<gpu::Graph>();
  }
  void launch(gpu::Graph&) override {}
  void report(Error) override {}
  bool failed() const override { return false; }
  Status sync() override { return {}; }

  std::vector<size_t> copies;  ///< bytes of each

 private:
  gpu::DeviceProperties properties_;
  std::vector<std::unique_ptr<gpu::HostBlock>> memory_;
  std::deque<std::function<void()>> work_;
  gpu::Ticket done_ = 0;
};

std::vector<std::byte> some_bytes(size_t n) {
  Rng rng(n + 1);
  std::vector<std::byte> bytes(n);
  for (std::byte& b : bytes) b = static_cast<std::byte>(rng.below(256));
  return bytes;
}

/// Rows of 10 bytes, of which the last four lie elsewhere, through pieces of at most `piece` bytes.
void take_rows(LateCard& card, gpu::DirectRows& direct, size_t n, std::vector<std::byte>& back,
               const std::vector<std::byte>& bytes) {
  const auto of = [&](size_t from, size_t count) { return std::span(bytes).subspan(from, count); };
  REQUIRE(direct
              .rows(
                  n, 10, 4,
                  [&](size_t first, size_t count, const gpu::DirectRows::Put& put) {
                    for (size_t row = 0; row < count; ++row) put(row * 6, of((first + row) * 6, 6));
                    for (size_t row = 0; row < count; ++row)
                      put(count * 6 + row * 4, of(n * 6 + (first + row) * 4, 4));
                  },
                  [&](size_t first, size_t count, const void* staged) {
                    card.work([&back, n, first, count, staged] {
                      const auto* const at = static_cast<const std::byte*>(staged);
                      std::memcpy(back.data() + first * 6, at, count * 6);
                      std::memcpy(back.data() + n * 6 + first * 4, at + count * 6, count * 4);
                    });
                  })
              .ok());
}

DecoderOptions small_options() {
  DecoderOptions options;
  options.kv_blocks = 4;
  options.max_rows = 8;
  return options;
}

/// A quantised matrix in each of the formats, and of one with rows of floats, beside what else a
/// model has; odd widths, tables and a head.
ModelBundle model_of(Architecture architecture, std::optional<WeightFormat> quantised, DType floats,
                     bool pruned) {
  const ModelConfig config = tiny_config(architecture);
  const ParameterLayout layout(config);
  auto tensors =
      std::make_shared<TensorMap>(save_parameters(layout, tiny_weights(layout, 7), floats));
  Rng rng(5);
  Json weights;
  for (const Parameter& p : layout.parameters()) {
    if (!quantised || p.name.find("_proj") == std::string::npos) continue;
    QuantisedMatrix m = decode_cases::random_quantised(rng, *quantised, p.rows, p.cols);
    if (pruned) decode_cases::prune_two_of_four(rng, m);
    add_quantised(*tensors, p.name, m);
    weights.set(p.name, weight_format_name(*quantised));
  }
  Json json = config.to_json();
  if (quantised) {
    Json own = json.find("fastserve") ? *json.find("fastserve") : Json();
    own.set("weights", weights);
    json.set("fastserve", own);
  }
  return {{{"config.json", json.dump()}}, tensors};
}

Result<std::vector<float>> logits_of(Decoder& decoder) {
  const std::vector<int32_t> tokens = {1, 2, 3, 9, 30}, blocks = {0}, wanted = {2, 4};
  const Segment segment{0, 5, 0, blocks};
  FS_ASSIGN(const auto logits, decoder.step(tokens, {&segment, 1}, wanted));
  return std::vector<float>(logits.begin(), logits.end());
}

bool same_bits(const std::vector<float>& one, const std::vector<float>& other) {
  return one.size() == other.size() &&
         std::memcmp(one.data(), other.data(), one.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("a piece's place is written again when what reads it is done, and no sooner") {
  for (const size_t n : {size_t{1}, size_t{8}, size_t{9}, size_t{500}}) {
    CAPTURE(n);
    LateCard card;
    gpu::DirectRows direct(card, 80);
    const std::vector<std::byte> bytes = some_bytes(n * 10);
    std::vector<std::byte> back(bytes.size());
    for (int again = 0; again < 2; ++again) {
      std::fill(back.begin(), back.end(), std::byte{0});
      take_rows(card, direct, n, back, bytes);
      direct.release();
      CHECK(back == bytes);
      CHECK(card.idle());
    }
  }
}

TEST_CASE("bytes that lie together on both sides are copied together") {
  LateCard card;
  gpu::DirectRows direct(card, 80);
  const std::vector<std::byte> bytes = some_bytes(170);
  std::vector<std::byte> back(bytes.size());
  take_rows(card, direct, 17, back, bytes);
  CHECK(card.copies == std::vector<size_t>{48, 32, 48, 32, 6, 4});
  direct.release();
  CHECK(back == bytes);
}

TEST_CASE("bytes that need no work on the card are copied straight to their place") {
  LateCard card;
  gpu::DirectRows direct(card, 80);
  const std::vector<std::byte> bytes = some_bytes(1000);
  std::vector<std::byte> to(bytes.size());
  direct.copy(to.data(), bytes);
  direct.copy(nullptr, {});
  CHECK(to != bytes);
  direct.release();  // waits for them
  CHECK(to == bytes);
}

TEST_CASE("pieces are small where large ones could take the room that weights need") {
  for (const bool plenty : {true, false}) {
    simt::Options options;
    options.memory = size_t{1} << 20;
    const auto runtime = simt::make_emulated_runtime(options);
    const size_t all = runtime->available();
    gpu::DirectRows direct(*runtime, 64 << 10);
    direct.expect(plenty ? 100'000 : 600'000);
    const auto pinned = runtime->allocate_host(100'000).value();
    size_t pieces = 0;
    REQUIRE(direct
                .rows(
                    100, 1000, 1,
                    [&](size_t, size_t count, const gpu::DirectRows::Put& put) {
                      put(0, {static_cast<const std::byte*>(pinned->data()), count * 1000});
                    },
                    [&](size_t, size_t, const void*) { ++pieces; })
                .ok());
    CHECK(pieces == (plenty ? 2 : 13));
    const size_t taken = all - runtime->available(), room = plenty ? 256 << 10 : 32 << 10;
    CHECK(taken >= room);
    CHECK(taken < room + 8192);
    direct.release();
    CHECK(runtime->available() == all);
    CHECK(runtime->sync().ok());
  }
}

TEST_CASE("a matrix from pinned memory has the same bits however many pieces it came in") {
  const auto runtime = simt::make_emulated_runtime();
  gpu::PinnedShelf shelf(size_t{1} << 20);
  const auto ring = gpu::make_decode_ops(*runtime);
  const auto pieces = gpu::make_decode_ops(*runtime, 100, &shelf);
  constexpr int kRows = 3;
  Rng rng(4);
  for (const int in : {7, 70})
    for (const bool gated : {false, true})
      for (const DType type : {DType::kF32, DType::kBF16, DType::kF16})
        for (const WeightFormat format :
             {WeightFormat::kFloat32, WeightFormat::kFloat16, WeightFormat::kBFloat16}) {
          const std::vector<int> rows = gated ? std::vector{21, 21} : std::vector{37, 2, 20};
          const int out = gated ? 21 : 59;
          std::vector<Tensor> tensors;
          std::vector<DecodeMatrixSource::Part> there, pinned;
          std::vector<std::unique_ptr<DeviceBuffer>> memory;
          for (const int r : rows) {
            Array values = random_floats(rng, reference::at(r, in));
            tensors.push_back(Tensor::from_floats({r, in}, {values.floats(), values.size()}, type));
          }
          for (size_t i = 0; i < rows.size(); ++i) {
            const auto& bytes = tensors[i].bytes;
            memory.push_back(runtime->allocate_host(bytes.size()).value());
            std::memcpy(memory.back()->data(), bytes.data(), bytes.size());
            there.push_back({{}, nullptr, rows[i], bytes, type});
            pinned.push_back(there.back());
            pinned.back().stored = {static_cast<const std::byte*>(memory.back()->data()),
                                    bytes.size()};
          }
          Array x = random_floats(rng, reference::at(kRows, in));
          const auto product = [&](DecodeOps& ops,
                                   std::span<const DecodeMatrixSource::Part> parts) {
            const auto matrix = ops.make_matrix({parts, in, format, gated}).value();
            Array y = unwritten_floats(reference::at(kRows, out));
            ops.matmul({matrix.get(),
                        x.floats(),
                        kRows,
                        in,
                        {},
                        nullptr,
                        nullptr,
                        gated ? DecodeEpilogue::kSwiGlu : DecodeEpilogue::kStore,
                        y.floats(),
                        out});
            CHECK_FALSE(ops.loaded().has_value());
            return Outputs{float_output("out", y, 1)};
          };
          require_same_bits(weight_format_name(format), product(*ring, there),
                            product(*pieces, pinned));
        }
  CHECK(shelf.take(1) == nullptr);  // nothing has gone through a ring
  CHECK(runtime->sync().ok());
}

TEST_CASE("a model from pinned memory has the bits of one that came through the ring") {
  struct Case {
    Architecture architecture;
    std::optional<WeightFormat> quantised;
    DType floats = DType::kF32;
    bool pruned = false;
  };
  std::vector<Case> cases;
  for (const Architecture a : kArchitectures) cases.push_back({a, std::nullopt});
  for (const DType type : {DType::kBF16, DType::kF16})
    cases.push_back({Architecture::kQwen3, std::nullopt, type});
  for (const WeightFormat format :
       {WeightFormat::kInt8Row, WeightFormat::kInt8Group32, WeightFormat::kInt8Group128,
        WeightFormat::kInt4Group32, WeightFormat::kInt4Group128})
    for (const bool pruned : {false, true})
      if (!pruned || format_bits(format) == 8)
        cases.push_back({Architecture::kQwen3, format, DType::kBF16, pruned});
  for (const Case& c : cases) {
    CAPTURE(int(c.architecture));
    CAPTURE(c.pruned);
    const ModelBundle bundle = model_of(c.architecture, c.quantised, c.floats, c.pruned);
    std::vector<float> expected;
    for (const bool direct : {false, true}) {
      simt::Options options;
      options.own_memory = true;
      gpu::PinnedShelf shelf(size_t{1} << 20);
      const auto device =
          gpu::make_gpu_device(simt::make_emulated_runtime(options), nullptr, nullptr, &shelf);
      const auto decoder = Decoder::load(
          *device, direct ? preload(*device, bundle, 1 << 20).value() : bundle, small_options());
      REQUIRE_MESSAGE(decoder.ok(), decoder.error().message());
      const std::vector<float> logits = logits_of(**decoder).value();
      if (!direct) expected = logits;
      CHECK(same_bits(logits, expected));
      // A vector becomes floats on the host; GPT-2's matrices are turned there, and its positions.
      const auto ring = shelf.take(1);
      if (direct && c.architecture != Architecture::kGpt2)
        CHECK((!ring || ring->bytes() <= 8 * 1024));
      if (!direct) CHECK((ring && ring->bytes() > 8 * 1024));
      CHECK(device->sync().ok());
    }
  }
}

TEST_CASE("tensors that are changed before their load is done are an error, not other weights") {
  const auto device = emulated_gpu();
  const ModelBundle bundle =
      preload(*device, model_of(Architecture::kLlama, std::nullopt, DType::kBF16, false), 1 << 20)
          .value();
  const auto decoder = Decoder::begin(*device, bundle, small_options()).value();
  for (int part = 0; part < 2; ++part) REQUIRE(decoder->load_more().ok());
  const TensorView view = bundle.tensors->tensor("model.layers.0.mlp.down_proj.weight").value();
  const_cast<std::byte&>(view.bytes[0]) ^= std::byte{1};
  Status status;
  while (status.ok() && !decoder->loaded()) status = decoder->load_more();
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().what.find("changed before a copy from it was waited for") !=
        std::string::npos);
}

TEST_CASE("a decoder that goes in the middle of its load waits for what it reads") {
  const auto device = emulated_gpu();
  const uint64_t all = device->available_memory();
  const ModelBundle bundle =
      model_of(Architecture::kLlama, WeightFormat::kInt8Group32, DType::kBF16, false);
  for (int parts = 0; parts < 4; ++parts) {
    CAPTURE(parts);
    const auto decoder =
        Decoder::begin(*device, preload(*device, bundle, 1 << 20).value(), small_options());
    REQUIRE(decoder.ok());
    for (int part = 0; part < parts; ++part) REQUIRE((*decoder)->load_more().ok());
  }
  const Status status = device->sync();
  CHECK_MESSAGE(status.ok(), status.error().message());
  CHECK(device->available_memory() == all);
}

TEST_CASE("wherever a card is lost or full during a load from pinned memory, it ends cleanly") {
  const ModelBundle bundle =
      model_of(Architecture::kQwen3, WeightFormat::kInt4Group32, DType::kBF16, false);
  std::vector<float> expected;
  const auto load = [&](const simt::Options& options) {
    const auto device = emulated_gpu(options);
    const uint64_t all = device->available_memory();
    bool loaded = false;
    {
      const auto preloaded = preload(*device, bundle, 1 << 20).value();
      const auto decoder = Decoder::load(*device, preloaded, small_options());
      loaded = decoder.ok();
      if (loaded) {
        const auto logits = logits_of(**decoder);
        if (expected.empty()) expected = logits.value();
        if (logits.ok()) CHECK(same_bits(*logits, expected));
      } else {
        const ErrorCode code = decoder.error().code;
        CHECK((code == ErrorCode::kResourceExhausted || code == ErrorCode::kUnavailable ||
               code == ErrorCode::kInternal));
      }
    }
    CHECK(device->available_memory() == all);
    return loaded;
  };
  simt::Options options;
  options.own_memory = true;
  CHECK(load(options));
  bool done = false;
  for (options.launches = 1; !done; ++options.launches) {
    CAPTURE(options.launches);
    REQUIRE(options.launches < 200);
    done = load(options);
  }
  CHECK(options.launches > 10);
  options = {};
  options.own_memory = true;
  done = false;
  int refused = -1;
  for (options.memory = 16 << 10; !done; options.memory += 8 << 10) {
    CAPTURE(options.memory);
    REQUIRE(options.memory < size_t{16} << 20);
    done = load(options);
    ++refused;
  }
  CHECK(refused > 5);
}

}  // namespace fastserve::harness
