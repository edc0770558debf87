#include "api/devices.h"

#include "cpu/cpu_device.h"
#include "gpu/loader.h"

namespace fastserve {

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
