#include "gpu/emulated_device.h"

#include <algorithm>

#include "gpu/gpu_device.h"
#include "gpu/simt/emulated_link.h"
#include "gpu/simt/emulated_runtime.h"

namespace fastserve {

bool has_emulated_device() { return true; }

Result<std::unique_ptr<Device>> make_emulated_device(int threads, uint64_t memory) {
  simt::Options options;
  options.os_threads = std::max(1, threads);
  options.own_memory = true;
  if (memory > 0) options.memory = memory;
  return gpu::make_gpu_device(simt::make_emulated_runtime(options));
}

Result<std::unique_ptr<DeviceLink>> link_emulated_devices(std::span<Device* const> devices) {
  std::vector<gpu::Runtime*> cards;
  for (Device* device : devices) cards.push_back(&gpu::runtime_of(*device));
  return simt::make_emulated_link(std::move(cards));
}

}  // namespace fastserve
