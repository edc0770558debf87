// Copies that go on beside a GPU's work: what the emulator lets nobody get away with.
#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "gpu/gpu_device.h"
#include "gpu/simt/emulated_runtime.h"

namespace fastserve::gpu {
namespace {

constexpr size_t kCount = 100;

struct Card {
  Card() {
    device = make_gpu_device(simt::make_emulated_runtime());
    memory = device->allocate(kCount * sizeof(float)).value();
    x = static_cast<float*>(memory->data());
    fill(1);
  }
  void fill(float value) {
    const std::vector<float> values(kCount, value);
    device->copy_in(x, values.data(), kCount * sizeof(float));
  }
  Device::CopyMark copy_out(std::vector<float>& host) {
    return device->copy_out_beside(host.data(), x, host.size() * sizeof(float));
  }
  std::unique_ptr<Device> device;
  std::unique_ptr<DeviceBuffer> memory;
  float* x = nullptr;
};

bool all_are(const std::vector<float>& values, float wanted) {
  return std::all_of(values.begin(), values.end(), [&](float v) { return v == wanted; });
}

}  // namespace

TEST_CASE("a copy out beside the work is there when it is waited for, and not before") {
  Card card;
  std::vector<float> first(kCount, 7), second(kCount, 7);
  const Device::CopyMark one = card.copy_out(first), other = card.copy_out(second);
  CHECK_FALSE(all_are(first, 1));
  CHECK_FALSE(all_are(first, 7));  // what was there is lost already
  CHECK(card.device->wait_for(one));
  CHECK(all_are(first, 1));
  CHECK_FALSE(all_are(second, 1));
  CHECK(card.device->wait_for(other));
  CHECK(all_are(second, 1));
  CHECK(card.device->wait_for(0));
  CHECK(card.device->sync().ok());
}

TEST_CASE("a source that is changed before its copy is waited for comes out changed") {
  Card card;
  std::vector<float> host(kCount);
  const Device::CopyMark copy = card.copy_out(host);
  card.fill(2);
  CHECK(card.device->wait_for(copy));
  CHECK(all_are(host, 2));
  card.copy_out(host);
  CHECK(card.device->sync().ok());  // which waits for all
  CHECK(all_are(host, 2));
}

TEST_CASE("a copy out that is waited for later has what was there when it was asked for") {
  Card card;
  std::vector<float> first(kCount, 7), second(kCount, 7);
  const auto copy = [&](std::vector<float>& host) {
    return card.device->copy_out_async(host.data(), card.x, kCount * sizeof(float));
  };
  const Device::CopyMark one = copy(first);
  card.fill(2);
  const Device::CopyMark other = copy(second);
  CHECK_FALSE(all_are(first, 1));
  CHECK_FALSE(all_are(first, 7));
  CHECK(card.device->wait_for(one));
  CHECK(all_are(first, 1));
  CHECK_FALSE(all_are(second, 2));
  CHECK(card.device->wait_for(other));
  CHECK(all_are(second, 2));
  copy(first);
  CHECK(card.device->sync().ok());
  CHECK(all_are(first, 2));
}

TEST_CASE("memory that is changed before a copy in beside the work is done is an error") {
  Card card;
  std::vector<float> host(kCount, 3), back(kCount);
  card.device->copy_in_beside(card.x, host.data(), kCount * sizeof(float));
  card.device->copy_out(back.data(), card.x, kCount * sizeof(float));
  CHECK(all_are(back, 3));
  CHECK(card.device->sync().ok());
  card.device->copy_in_beside(card.x, host.data(), kCount * sizeof(float));
  host[5] = 4;
  const Status status = card.device->sync();
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().message().find("was changed before a copy") != std::string::npos);
}

TEST_CASE("behind a failure a copy beside the work gives zeros, and says so") {
  simt::Options options;
  options.launches = 1;
  const auto device = make_gpu_device(simt::make_emulated_runtime(options));
  const auto memory = device->allocate(kCount * sizeof(float)).value();
  auto* const x = static_cast<float*>(memory->data());
  std::vector<float> host(kCount, 7);
  const auto ops = device->make_train_ops(Precision::kFloat32);
  ops->add(x, x, x, kCount);
  std::vector<float> later = host, never = host;
  const size_t bytes = kCount * sizeof(float);
  const Device::CopyMark copy = device->copy_out_beside(host.data(), x, bytes);
  device->copy_out_async(later.data(), x, bytes);
  ops->add(x, x, x, kCount);  // one too many
  const Device::CopyMark last = device->copy_out_async(never.data(), x, bytes);
  CHECK_FALSE(device->wait_for(copy));
  CHECK_FALSE(device->wait_for(last));
  for (const auto* got : {&host, &later, &never}) CHECK(all_are(*got, 0));
  CHECK_FALSE(device->sync().ok());
}

TEST_CASE("nothing goes on beside work that is being captured") {
  Card card;
  std::vector<float> host(kCount, 7);
  card.device->begin_capture();
  card.copy_out(host);
  const auto graph = card.device->end_capture();
  REQUIRE_FALSE(graph.ok());
  CHECK(graph.error().message().find("cannot be part of captured work") != std::string::npos);
  CHECK(card.device->sync().ok());
}

}  // namespace fastserve::gpu
