// The op tests' device on a machine with a GPU: the plugin's, with operands where both sides see
// them.
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/rng.h"
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

TEST_CASE("NCCL adds up what one card holds to the same bytes, and sends them to all of one") {
  constexpr size_t kFloats = (size_t{1} << 20) + 3;
  const auto device = card();
  Device* const alone[] = {device.get()};
  auto link = loader().link(alone);
  REQUIRE_MESSAGE(link.ok(), link.error().message());
  const Status opened = (*link)->open_collectives();
  if (!opened.ok() && opened.error().code == ErrorCode::kUnsupported) {
    std::printf("NCCL is not checked: %s\n", opened.error().message().c_str());
    return;
  }
  REQUIRE_MESSAGE(opened.ok(), opened.error().message());
  std::printf("NCCL is checked with one rank: %s\n", (*link)->reduce_id().c_str());
  const auto memory = device->allocate(2 * kFloats * sizeof(float));
  REQUIRE_MESSAGE(memory.ok(), memory.error().message());
  auto* const held = static_cast<float*>((*memory)->data());
  float* const summed = held + kFloats;
  std::vector<float> sent(kFloats), got(kFloats);
  Rng rng(7);
  for (float& value : sent) value = static_cast<float>(rng.normal());
  device->copy_in(held, sent.data(), kFloats * sizeof(float));
  const float* const parts[] = {held};
  const auto check = [&](const float* of, const char* what) {
    (*link)->settle();
    device->copy_out(got.data(), of, kFloats * sizeof(float));
    const Status status = device->sync();
    REQUIRE_MESSAGE(status.ok(), what << ": " << status.error().message());
    CHECK_MESSAGE(std::memcmp(got.data(), sent.data(), kFloats * sizeof(float)) == 0, what);
  };
  (*link)->reduce(0, summed, parts, kFloats);
  check(summed, "a sum into other memory");
  (*link)->reduce(0, held, parts, kFloats);
  check(held, "a sum in place");
  float* const ranges[] = {held};
  (*link)->broadcast(0, ranges, kFloats);
  check(held, "a broadcast");
}

}  // namespace fastserve::harness
