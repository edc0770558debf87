// Attention by cuDNN's graphs, computed by a stand-in in plain loops, as a device's training op.
#include "tests/cpu/attention_cases.h"
#include "tests/gpu/gpu_tests.h"
#include "tests/gpu/stub_driver/cudnn.h"

namespace fastserve::harness {
namespace {

using attention_cases::AttentionShape;

constexpr Precision kBoth[] = {Precision::kBFloat16, Precision::kFloat16};

/// Of so much memory that two sequences of 4 heads and up to 64 tokens are taken back at a time.
std::unique_ptr<Device> with_cudnn() {
  stub_cudnn::state() = {};
  simt::Options options;
  options.memory = 5 << 20;
  auto runtime = simt::make_emulated_runtime(options);
  auto attention = stub_cudnn::make_attention(*runtime);
  return gpu::make_gpu_device(std::move(runtime), nullptr, std::move(attention));
}

}  // namespace

TEST_CASE("cuDNN's graphs of attention compute what the reference does, forward and backward") {
  {
    const auto device = with_cudnn();
    check_train_op_on(*device, kBoth, "attention",
                      std::vector<AttentionShape>{{{1, 1, 8}, {1}, 0},
                                                  {{2, 2, 16}, {9, 9}, 0},
                                                  {{4, 2, 16}, {7, 7, 7, 7}, 0},
                                                  {{4, 1, 32}, {13}, 0},
                                                  {{2, 2, 24}, {11, 11, 11}, 0, 10}},
                      attention_cases::run_attention);
    // Forward twice and backward once; of the four sequences two at a time.
    CHECK(stub_cudnn::state().executions == 2 * (5 * 3 + 1));
    CHECK(stub_cudnn::state().plans == 2 * 5 * 2);
    CHECK_FALSE(stub_cudnn::state().by_atomics);
  }
  CHECK(stub_cudnn::state().live == 0);
}

TEST_CASE("attention that cuDNN's graphs are not for, or have no room for, is ours") {
  const auto device = with_cudnn();
  const auto runs = [&](Precision precision, const AttentionShape& shape) {
    stub_cudnn::state().executions = 0;
    attention_cases::run_attention(*device->make_train_ops(precision), shape);
    CHECK(device->sync().ok());
    return stub_cudnn::state().executions;
  };
  CHECK(runs(Precision::kBFloat16, {{2, 2, 16}, {9, 9}, 0}) == 3);
  CHECK(runs(Precision::kFloat32, {{2, 2, 16}, {9, 9}, 0}) == 0);
  CHECK(runs(Precision::kBFloat16, {{2, 2, 16}, {9, 9}, 4}) == 0);
  CHECK(runs(Precision::kBFloat16, {{2, 2, 16}, {9, 8}, 0}) == 0);
  CHECK(runs(Precision::kBFloat16, {{2, 2, 12}, {9, 9}, 0}) == 0);
  CHECK(runs(Precision::kBFloat16, {{1, 1, 136}, {9}, 0}) == 0);
  CHECK(runs(Precision::kBFloat16, {{11, 11, 8}, {9}, 0}) == 2);  // forward alone has the room
}

}  // namespace fastserve::harness
