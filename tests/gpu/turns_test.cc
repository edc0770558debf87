// Deployments of models that take turns in the memory of the emulated GPU.
#include "gpu/gpu_device.h"
#include "gpu/simt/emulated_runtime.h"
#include "tests/actors_serve/turning.h"

using namespace fastserve;

namespace {

/// `device`, which may be null, is told the last one made.
DeviceFactory gpu_of(size_t memory, const Device** device = nullptr) {
  return [memory, device](int) -> Result<std::unique_ptr<Device>> {
    simt::Options options;
    options.own_memory = true;
    options.memory = memory;
    auto made = gpu::make_gpu_device(simt::make_emulated_runtime(options));
    if (device != nullptr) *device = made.get();
    return made;
  };
}

const std::vector<std::string> kNames = {"llama3-tiny", "gpt2-tiny", "qwen3-tiny"};

Turning three() {
  Turning turning;
  for (const std::string& name : kNames) turning.models.emplace_back(name, turn_bundle(name));
  return turning;
}

/// Room for any of the models, but not for two.
uint64_t card_for_one() {
  const uint64_t least = memory_for_one([](uint64_t bytes) {
    Turning turning = three();
    turning.make_device = gpu_of(bytes);
    return turning.open().ok();
  });
  return least + least / 8;
}

}  // namespace

TEST_CASE("models that do not fit a card together answer in turns, and leave nothing there") {
  Turning turning = three();
  const uint64_t memory = card_for_one();
  const Device* device = nullptr;
  turning.make_device = gpu_of(memory, &device);
  const auto system = turning.start();
  CHECK(ask(*system, kNames[0]).tokens.size() == 6);
  const uint64_t before = device->available_memory();
  check_alternating(*system, kNames, gpu_of(size_t{1} << 30), 9);
  CHECK(ask(*system, kNames[0]).tokens.size() == 6);
  CHECK(device->available_memory() + memory / 8 > before);  // scratch follows from how steps met
  int there = 0;
  for (const ServedModel& model : system->models()) there += model.on_device;
  CHECK(there == 1);
}

TEST_CASE("a card that has less memory than it had ends who cannot be loaded, and nobody else") {
  Turning turning = three();
  const uint64_t memory = card_for_one();
  Device* device = nullptr;
  turning.make_device = [&](int) -> Result<std::unique_ptr<Device>> {
    auto made = gpu_of(memory)(1);
    device = made->get();
    return made;
  };
  const auto system = turning.start();
  CHECK(ask(*system, kNames[0]).tokens.size() == 6);
  const uint64_t before = device->available_memory();
  {
    // Another process has taken what is free, and what is freed does not suffice for a load.
    std::vector<std::unique_ptr<DeviceBuffer>> taken;
    for (size_t bytes = before; bytes >= 1024; bytes /= 2)
      if (auto memory = device->allocate(bytes); memory.ok()) taken.push_back(*std::move(memory));
    const Answer lost = ask(*system, kNames[2]);
    CHECK(lost.finish == FinishReason::kError);
    REQUIRE(lost.error);
    CHECK(lost.error->code == ErrorCode::kResourceExhausted);
  }
  CHECK(ask(*system, kNames[2]).tokens.size() == 6);
  CHECK(ask(*system, kNames[0]).tokens.size() == 6);
  CHECK(device->available_memory() + memory / 8 > before);  // scratch follows from how steps met
}

TEST_CASE("weights that are kept in pinned memory come back without what they were stored in") {
  for (const uint64_t host_memory : {uint64_t{64} << 20, uint64_t{1000}}) {
    CAPTURE(host_memory);
    Turning turning = three();
    turning.make_device = gpu_of(card_for_one());
    const auto last = std::make_shared<WatchedTensors>(turning.models[2].second.tensors);
    turning.models[2].second.tensors = last;
    turning.host_memory = host_memory;
    std::vector<std::string> lines;
    turning.lines = &lines;
    auto system = turning.start();
    const bool kept = host_memory > 1000;
    CHECK((last->read() > 0) == kept);
    last->damage(Error{ErrorCode::kCorrupt, "the checksum differs", "q@1", ""});
    CHECK((ask(*system, kNames[2]).finish == FinishReason::kLength) == kept);
    if (kept) check_alternating(*system, kNames, gpu_of(size_t{1} << 30), 6);
    system.reset();
    int from_pinned = 0;
    for (const std::string& line : lines)
      from_pinned += line.find(" comes from pinned memory, where its weights take ") != line.npos;
    CHECK(from_pinned == (kept ? 3 : 0));
  }
}
