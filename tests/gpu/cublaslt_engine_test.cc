#include "gpu/cuda/cublaslt_engine.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstring>
#include <optional>
#include <random>

#include "base/half.h"
#include "tests/gpu/stub_driver/cublaslt.h"

using namespace fastserve;
using namespace fastserve::gpu;

namespace {

/// The host as a card.
class HostRuntime final : public Runtime {
 public:
  const DeviceProperties& properties() const override { return properties_; }
  StreamHandle stream() const override { return nullptr; }
  Result<void*> allocate(size_t bytes) override {
    live_++;
    return std::calloc(bytes, 1);
  }
  void free(void* device) override {
    live_--;
    std::free(device);
  }
  size_t available() const override { return 0; }
  bool copy_in(void* device, const void* host, size_t bytes) override {
    std::memcpy(device, host, bytes);
    return true;
  }
  Ticket copy_in_async(void* device, const void* host, size_t bytes) override {
    copy_in(device, host, bytes);
    return 0;
  }
  void wait(Ticket) override {}
  void copy_out(void* host, const void* device, size_t bytes) override {
    std::memcpy(host, device, bytes);
  }
  void fill_zero(void* device, size_t bytes) override { std::memset(device, 0, bytes); }
  void begin_capture() override {}
  Result<std::unique_ptr<Graph>> end_capture() override {
    return Error{ErrorCode::kUnsupported, "records no work", "host", ""};
  }
  void launch(Graph&) override {}
  void report(Error error) override {
    if (!kept_) kept_ = std::move(error);
  }
  bool failed() const override { return kept_.has_value(); }
  Status sync() override {
    if (!kept_) return {};
    return *std::exchange(kept_, std::nullopt);
  }
  int live() const { return live_; }

 private:
  DeviceProperties properties_{"host", 9, 0, 1, 0, 0};
  std::optional<Error> kept_;
  int live_ = 0;
};

const CublasLt kStub = [] {
  CublasLt table;
#define FS_FILL(name) table.name = &::name;
  FS_CUBLASLT_FUNCTIONS(FS_FILL)
#undef FS_FILL
  return table;
}();

std::unique_ptr<MatmulEngine> made(Runtime& runtime, const Path& folder = {}) {
  auto engine = make_cublaslt_engine(kStub, "13.1.0", runtime, folder);
  REQUIRE(engine.ok());
  return std::move(*engine);
}

/// Small whole numbers: sums are exact, whatever their order.
void fill(BFloat16* values, int n, unsigned seed) {
  std::mt19937 random(seed);
  for (int i = 0; i < n; i++) values[i] = to_bfloat16(float(int(random() % 9) - 4));
}

/// A product with its operands and what must come out.
struct Case {
  Product product;
  alignas(16) BFloat16 a[64 * 64], b[64 * 64], stored[64 * 64];
  alignas(16) BFloat16 short_bias[64];
  alignas(16) float bias[64], residual[64 * 64], floats[64 * 64];

  Case(ProductKind kind, ProductEpilogue epilogue, int m, int n, int k) {
    Product& p = product;
    p.kind = kind;
    p.epilogue = epilogue;
    p.m = m, p.n = n, p.k = k;
    p.a = a, p.b = b;
    // Wider than the matrix, so that a wrong leading dimension is seen.
    p.lda = (kind == ProductKind::kWeightGrad ? m : k) / 8 * 8 + 16;
    p.ldb = (kind == ProductKind::kForward ? k : n) / 8 * 8 + 16;
    p.out_ld = n / 8 * 8 + 16;
    fill(a, 64 * 64, 1);
    fill(b, 64 * 64, 2);
    for (int i = 0; i < 64 * 64; i++) residual[i] = float(i % 7), floats[i] = -99;
    for (int i = 0; i < 64; i++) bias[i] = float(i);
    if (epilogue == ProductEpilogue::kAddResidual) p.residual = residual;
    p.out = epilogue == ProductEpilogue::kStore ? static_cast<void*>(stored) : floats;
  }

  /// Of the output's type.
  void add_bias() {
    product.short_bias = product.epilogue == ProductEpilogue::kStore;
    for (int i = 0; i < 64; i++) short_bias[i] = to_bfloat16(bias[i]);
    product.bias = product.short_bias ? static_cast<const void*>(short_bias) : bias;
  }

  float expected(int row, int column) const {
    const Product& p = product;
    float sum = p.bias != nullptr ? bias[column] : 0;
    if (p.residual != nullptr) sum += residual[row * p.out_ld + column];
    for (int i = 0; i < p.k; i++) {
      const int at_a = p.kind == ProductKind::kWeightGrad ? i * p.lda + row : row * p.lda + i;
      const int at_b = p.kind == ProductKind::kForward ? column * p.ldb + i : i * p.ldb + column;
      sum += to_float(a[at_a]) * to_float(b[at_b]);
    }
    return sum;
  }
  float out(int row, int column) const {
    const int at = row * product.out_ld + column;
    return product.epilogue == ProductEpilogue::kStore ? to_float(stored[at]) : floats[at];
  }
  bool right() const {
    for (int row = 0; row < product.m; row++)
      for (int column = 0; column < product.n; column++) {
        float want = expected(row, column);
        if (product.epilogue == ProductEpilogue::kStore) want = to_float(to_bfloat16(want));
        if (out(row, column) != want) return false;
      }
    return true;
  }
};

constexpr ProductKind kKinds[] = {ProductKind::kForward, ProductKind::kInputGrad,
                                  ProductKind::kWeightGrad};
constexpr ProductEpilogue kEpilogues[] = {ProductEpilogue::kStore, ProductEpilogue::kStoreFloat,
                                          ProductEpilogue::kAddResidual};

}  // namespace

TEST_CASE("a product means to cuBLASLt what it means here: operands, transposes, bias, residual") {
  HostRuntime runtime;
  const auto engine = made(runtime);
  for (const ProductKind kind : kKinds)
    for (const ProductEpilogue epilogue : kEpilogues)
      for (const bool biased : {false, true}) {
        for (const auto [m, n, k] : {std::array{5, 24, 16}, {33, 8, 7}, {1, 40, 48}}) {
          Case c(kind, epilogue, m, n, k);
          if (biased) c.add_bias();
          REQUIRE(engine->supports(c.product));
          engine->run(c.product);
          REQUIRE(runtime.sync().ok());
          CHECK_MESSAGE(c.right(), int(kind) << " " << int(epilogue) << " bias " << biased << " "
                                             << m << "x" << n << "x" << k);
        }
      }
}

TEST_CASE("what cuBLASLt cannot say in one call is left to the engine that runs everything") {
  HostRuntime runtime;
  const auto engine = made(runtime);
  Case c(ProductKind::kForward, ProductEpilogue::kStore, 8, 8, 8);
  CHECK(engine->supports(c.product));
  const auto refused = [&](auto change) {
    Product p = c.product;
    change(p);
    return !engine->supports(p);
  };
  CHECK(refused([&](Product& p) { p.bias = c.bias; }));
  CHECK(refused([&](Product& p) { p.epilogue = ProductEpilogue::kGelu; }));
  CHECK(refused([&](Product& p) { p.epilogue = ProductEpilogue::kSwiGlu; }));
  CHECK(refused([&](Product& p) { p.epilogue = ProductEpilogue::kTimesSlope; }));
  CHECK(refused([&](Product& p) { p.precision = Precision::kFloat32; }));
  CHECK(refused([&](Product& p) { p.lda = 17; }));
  CHECK(refused([&](Product& p) { p.a = c.a + 1; }));
  CHECK(refused([&](Product& p) { p.m = 0; }));
}

TEST_CASE("an algorithm is chosen once for all numbers of rows, and kept for the next start") {
  const Path folder =
      std::filesystem::temp_directory_path() / ("fastserve_lt_plans_" + std::to_string(::getpid()));
  std::filesystem::remove_all(folder);
  HostRuntime runtime;
  const auto run = [&](MatmulEngine& engine, int m) {
    Case c(ProductKind::kForward, ProductEpilogue::kStoreFloat, m, 24, 16);
    REQUIRE(engine.supports(c.product));
    engine.run(c.product);
    CHECK(c.right());
  };
  const int before = stub_cublaslt::state().searches;
  {
    const auto engine = made(runtime, folder);
    for (const int m : {1, 7, 40}) run(*engine, m);
    CHECK(stub_cublaslt::state().searches == before + 1);
  }
  run(*made(runtime, folder), 9);
  CHECK(stub_cublaslt::state().searches == before + 1);
  std::filesystem::remove_all(folder);
}

TEST_CASE("of the algorithms with the first one's bits the fastest is taken, and stays taken") {
  struct StubClock final : Clock {
    Nanoseconds now() const override { return Nanoseconds(stub_cublaslt::state().nanoseconds); }
    int64_t unix_seconds() const override { return 0; }
  };
  const StubClock clock;
  const Path folder = std::filesystem::temp_directory_path() /
                      ("fastserve_lt_trials_" + std::to_string(::getpid()));
  std::filesystem::remove_all(folder);
  HostRuntime runtime;
  const auto run = [&](const Clock* measures) {
    auto engine = make_cublaslt_engine(kStub, "13.1.0", runtime, folder, measures);
    REQUIRE(engine.ok());
    Case c(ProductKind::kForward, ProductEpilogue::kAddResidual, 9, 24, 16);
    c.product.bias = c.bias;
    REQUIRE((*engine)->supports(c.product));
    const int before = stub_cublaslt::state().fastest_run;
    (*engine)->run(c.product);
    CHECK(c.right());
    return stub_cublaslt::state().fastest_run - before;
  };
  CHECK(run(&clock) == 1);
  CHECK(run(nullptr) == 1);  // as it was kept
  std::filesystem::remove_all(folder);
  CHECK(run(nullptr) == 0);  // the heuristic's first
  std::filesystem::remove_all(folder);
  CHECK(runtime.live() == 0);
}

TEST_CASE("whichever call of cuBLASLt fails, nothing leaks and no wrong product passes as right") {
  stub_cublaslt::State& stub = stub_cublaslt::state();
  stub.calls = 0;
  bool failed = true;
  int failures = 0;
  for (int nth = 0; failed; nth++) {
    HostRuntime runtime;
    stub.calls = 0;
    stub.fail_at = nth;
    {
      auto engine = make_cublaslt_engine(kStub, "13.1.0", runtime, {});
      Case c(ProductKind::kForward, ProductEpilogue::kAddResidual, 8, 16, 24);
      c.product.bias = c.bias;
      if (engine.ok() && (*engine)->supports(c.product)) {
        (*engine)->run(c.product);
        CHECK(runtime.sync().ok() == c.right());
      }
    }
    failed = stub.calls > nth;
    failures += failed;
    CHECK_MESSAGE(stub.live == 0, "call " << nth);
    CHECK_MESSAGE(runtime.live() == 0, "call " << nth);
  }
  stub.fail_at = -1;
  CHECK(failures > 20);
}
