// Products of a library that knows three epilogues, made into the others.
#include "gpu/matmul_engine.h"
#include "tests/cpu/matmul_cases.h"
#include "tests/gpu/gpu_tests.h"

namespace fastserve::harness {
namespace {

/// Our own products, in the part of a library: it refuses what one has no word for.
class PlainLibrary final : public gpu::MatmulEngine {
 public:
  PlainLibrary(gpu::Runtime& runtime, bool adds_short_bias, int& runs)
      : runtime_(runtime),
        mma_(gpu::make_mma_engine(runtime)),
        adds_short_bias_(adds_short_bias),
        runs_(runs) {}
  std::string name() const override { return "plain"; }
  bool supports(const gpu::Product& p) const override {
    using enum gpu::ProductEpilogue;
    if (p.bias != nullptr) return adds_short_bias_ && p.short_bias && p.epilogue == kStore;
    return p.epilogue == kStore || p.epilogue == kStoreFloat || p.epilogue == kAddResidual;
  }
  void run(const gpu::Product& p) override {
    ++runs_;
    CHECK(supports(p));
    if (p.bias == nullptr) return mma_->run(p);
    gpu::Product q = p;
    const gpu::Memory bias = floats_of(p);
    q.bias = bias.data();
    q.short_bias = false;
    mma_->run(q);
    CHECK(runtime_.sync().ok());
  }

 private:
  gpu::Memory floats_of(const gpu::Product& p) {
    const auto n = static_cast<size_t>(p.n);
    std::vector<uint16_t> halves(n);
    runtime_.copy_out(halves.data(), p.bias, n * sizeof(uint16_t));
    std::vector<float> floats;
    for (const uint16_t h : halves)
      floats.push_back(p.precision == Precision::kBFloat16 ? to_float(BFloat16{h})
                                                           : to_float(Float16{h}));
    gpu::Memory memory = gpu::Memory::allocate(runtime_, n * sizeof(float)).value();
    runtime_.copy_in(memory.data(), floats.data(), n * sizeof(float));
    return memory;
  }

  gpu::Runtime& runtime_;
  const std::unique_ptr<gpu::MatmulEngine> mma_;
  const bool adds_short_bias_;
  int& runs_;
};

std::unique_ptr<Device> device_with_library(int& runs, bool adds_short_bias = false,
                                            const simt::Options& options = {}) {
  auto runtime = simt::make_emulated_runtime(options);
  auto engine = gpu::make_finishing_engine(
      std::make_unique<PlainLibrary>(*runtime, adds_short_bias, runs), *runtime);
  return gpu::make_gpu_device(std::move(runtime), std::move(engine));
}

/// The library's product is rounded, and what it is made into.
Outputs run_twice_rounded(TrainOps& ops, const matmul_cases::MatmulShape& s) {
  return matmul_cases::run_forward_rounded(ops, s, 2);
}

Outputs run_through_activation(TrainOps& ops, const matmul_cases::MatmulShape& s) {
  return matmul_cases::run_activation_rounded(ops, s, 3);
}

/// More rows than a sum is of, columns past the block's, a last row and column group with little.
const std::vector<matmul_cases::MatmulShape> kActivations = {
    {1, 16, 8}, {33, 64, 48}, {129, 16, 264}, {300, 24, 520}};

constexpr Precision kHalves[] = {Precision::kBFloat16, Precision::kFloat16};

}  // namespace

TEST_CASE("a library's products become biased, gated and residual ones as the reference's do") {
  const std::vector<matmul_cases::MatmulShape> shapes = {{1, 16, 8}, {33, 64, 48}, {70, 144, 32}};
  for (const bool adds_short_bias : {false, true}) {
    int runs = 0;
    const auto device = device_with_library(runs, adds_short_bias);
    check_train_op_on(*device, kHalves, "matmul", shapes, run_twice_rounded);
    const int forward = runs;
    CHECK(forward > 0);
    check_train_op_on(*device, kHalves, "matmul dx", shapes, matmul_cases::run_backward_input);
    CHECK(runs > forward);
    const int back = runs;
    check_train_op_on(*device, kHalves, "activation", kActivations, run_through_activation);
    CHECK(runs - back >= 8 * static_cast<int>(kActivations.size() * std::size(kHalves)));
  }
}

TEST_CASE("what does not lie on 16 bytes is multiplied without the library") {
  int runs = 0;
  const auto device = device_with_library(runs);
  check_train_op_on(*device, kHalves, "matmul",
                    std::vector<matmul_cases::MatmulShape>{{7, 66, 63}, {5, 18, 20}},
                    run_twice_rounded);
  check_train_op_on(*device, kHalves, "matmul dx",
                    std::vector<matmul_cases::MatmulShape>{{7, 66, 63}},
                    matmul_cases::run_backward_input);
  check_train_op_on(*device, kHalves, "activation",
                    std::vector<matmul_cases::MatmulShape>{{7, 66, 63}}, run_through_activation);
}

TEST_CASE("what becomes of a library's product does not depend on the order of threads") {
  int runs = 0;
  const matmul_cases::MatmulShape shape{140, 16, 272};
  for (const Precision precision : kHalves) {
    const auto device = device_with_library(runs);
    const Outputs expected = run_through_activation(*device->make_train_ops(precision), shape);
    for (const simt::Options& options : unlike_orders()) {
      const auto other = device_with_library(runs, false, options);
      require_same_bits("an activation in another order", expected,
                        run_through_activation(*other->make_train_ops(precision), shape));
      CHECK(other->sync().ok());
    }
  }
}

}  // namespace fastserve::harness
