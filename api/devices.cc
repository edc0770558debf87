#include "api/devices.h"

#include "cpu/cpu_device.h"
#include "gpu/loader.h"

namespace fastserve {

std::vector<int> gpus_alike(const GpuInventory& found) {
  const GpuInfo* first = nullptr;
  std::vector<int> indices;
  for (const GpuInfo& gpu : found.gpus) {
    if (!gpu.problem.empty()) continue;
    if (first == nullptr) first = &gpu;
    if (gpu.name == first->name) indices.push_back(gpu.index);
  }
  return indices;
}

Result<DeviceList> list_devices(int lanes) {
  DeviceList list;
  FS_ASSIGN(list.isa, choose_isa());
  list.lanes = lanes > 0 ? lanes : usable_cores();
  auto loader = GpuLoader::open(GpuSearch::standard());
  if (!loader.ok()) {
    list.plugin_problem = std::move(loader).error();
    return list;
  }
  list.plugin = loader->path().string();
  list.gpu = loader->inventory();
  return list;
}

}  // namespace fastserve
