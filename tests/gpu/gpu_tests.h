// The emulated GPU as a device for tests, and what tests of its operations share.
#pragma once

#include <memory>

#include "gpu/gpu_device.h"
#include "gpu/simt/emulated_runtime.h"
#include "tests/cpu/op_harness.h"

namespace fastserve::harness {

#if defined(FASTSERVE_ON_CARD)
/// The plugin's device instead (tests/gpu/card.cc): a card orders its threads as it likes.
std::unique_ptr<Device> card();
inline std::unique_ptr<Device> emulated_gpu(const simt::Options& = {}) { return card(); }
#else
inline std::unique_ptr<Device> emulated_gpu(const simt::Options& options = {}) {
  return gpu::make_gpu_device(simt::make_emulated_runtime(options));
}
#endif

/// ThreadSanitizer makes all of this some thirty times slower, and sees races in any order: there
/// one precision is run, and one other order, with blocks side by side.
#if defined(__SANITIZE_THREAD__)
inline constexpr Precision kGpuPrecisions[] = {Precision::kBFloat16};
#else
inline constexpr Precision kGpuPrecisions[] = {Precision::kFloat32, Precision::kBFloat16,
                                               Precision::kFloat16};
#endif

/// Orders of threads, blocks and copies that have little in common with the default.
inline std::vector<simt::Options> unlike_orders() {
  std::vector<simt::Options> orders = {
      {.order = simt::Order::kShuffled, .seed = 5, .os_threads = 2},
      {.order = simt::Order::kReverse, .early_copies = true},
      {.order = simt::Order::kLockstep, .early_copies = true}};
#if defined(__SANITIZE_THREAD__)
  orders.resize(1);
#endif
  return orders;
}

/// Against the reference in one order; then the same bits whatever the order of threads and blocks
/// and whenever asynchronous copies land.
template <class Shape, class Run>
void check_gpu_train_op(const std::string& op, const std::vector<Shape>& shapes, const Run& run) {
  const auto device = emulated_gpu();
  check_train_op_on(*device, kGpuPrecisions, op, shapes, run);
  const Shape& shape = shapes.back();
  for (const Precision precision : kGpuPrecisions) {
    const Outputs expected = run(*device->make_train_ops(precision), shape);
    for (const simt::Options& options : unlike_orders()) {
      const auto other = emulated_gpu(options);
      const std::string what = op + " " + shape.text() + " in another order";
      require_same_bits(what, expected, run(*other->make_train_ops(precision), shape));
      const Status status = other->sync();
      CHECK_MESSAGE(status.ok(), what << ": " << status.error().message());
    }
  }
}

/// The same for inference.
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

}  // namespace fastserve::harness
