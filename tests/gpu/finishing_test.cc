// Products of a library that knows three epilogues, made into the others.
#include "gpu/matmul_engine.h"
#include "tests/cpu/matmul_cases.h"
#include "tests/gpu/gpu_tests.h"

namespace fastserve::harness {
namespace {

/// Our own products, in the part of a library: it refuses what one has no word for.
class PlainLibrary final : public gpu::MatmulEngine {
 public:
  PlainLibrary(gpu::Runtime& runtime, int& runs)
      : mma_(gpu::make_mma_engine(runtime)), runs_(runs) {}
  std::string name() const override { return "plain"; }
  bool supports(const gpu::Product& p) const override {
    using enum gpu::ProductEpilogue;
    return p.bias == nullptr &&
           (p.epilogue == kStore || p.epilogue == kStoreFloat || p.epilogue == kAddResidual);
  }
  void run(const gpu::Product& p) override {
    ++runs_;
    CHECK(supports(p));
    mma_->run(p);
  }

 private:
  const std::unique_ptr<gpu::MatmulEngine> mma_;
  int& runs_;
};

std::unique_ptr<Device> device_with_library(int& runs) {
  auto runtime = simt::make_emulated_runtime();
  auto engine =
      gpu::make_finishing_engine(std::make_unique<PlainLibrary>(*runtime, runs), *runtime);
  return gpu::make_gpu_device(std::move(runtime), std::move(engine));
}

/// The library's product is rounded, and what it is made into.
Outputs run_twice_rounded(TrainOps& ops, const matmul_cases::MatmulShape& s) {
  return matmul_cases::run_forward_rounded(ops, s, 2);
}

constexpr Precision kHalves[] = {Precision::kBFloat16, Precision::kFloat16};

}  // namespace

TEST_CASE("a library's products become biased, gated and residual ones as the reference's do") {
  int runs = 0;
  const auto device = device_with_library(runs);
  const std::vector<matmul_cases::MatmulShape> shapes = {{1, 16, 8}, {33, 64, 48}, {70, 144, 32}};
  check_train_op_on(*device, kHalves, "matmul", shapes, run_twice_rounded);
  const int forward = runs;
  CHECK(forward > 0);
  check_train_op_on(*device, kHalves, "matmul dx", shapes, matmul_cases::run_backward_input);
  CHECK(runs > forward);
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
}

}  // namespace fastserve::harness
