// The op tests' device on a machine with a GPU: the plugin's, with operands where both sides see
// them.
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>

#include "gpu/loader.h"
#include "tests/gpu/gpu_tests.h"

namespace fastserve::harness {
namespace {

const GpuLoader& loader() {
  static const GpuLoader opened = [] {
    // An op's outputs are looked at as soon as it returns.
    ::setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
    auto made = GpuLoader::open(GpuSearch::standard());
    if (made.ok()) {
      const auto usable = made->first_usable();
      if (usable.ok()) return std::move(*made);
      std::printf("skipped: %s\n", usable.error().message().c_str());
    } else {
      std::printf("skipped: %s\n", made.error().message().c_str());
    }
    std::exit(0);
  }();
  return opened;
}

std::shared_ptr<std::byte> seen_by_both(size_t bytes) {
  auto memory = loader().allocate_shared(bytes);
  REQUIRE_MESSAGE(memory.ok(), memory.error().message());
  const std::shared_ptr<DeviceBuffer> owner = std::move(*memory);
  return {owner, static_cast<std::byte*>(owner->data())};
}

}  // namespace

std::unique_ptr<Device> card() {
  const int index = *loader().first_usable();
  operand_memory() = seen_by_both;
  auto device = loader().make_device(index, {});
  REQUIRE_MESSAGE(device.ok(), device.error().message());
  return std::move(*device);
}

}  // namespace fastserve::harness
