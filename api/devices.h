// What this machine offers to compute on.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "gpu/inventory.h"

namespace fastserve {

struct DeviceList {
  Isa isa = Isa::kPortable;
  int lanes = 0;                        ///< cores this process may use
  std::string plugin;                   ///< the GPU plugin's file; empty when none was opened
  std::optional<Error> plugin_problem;  ///< why none was
  GpuInventory gpu;                     ///< as the plugin tells
};

/// The fit GPUs of the first fit one's model, which "cuda:all" trains on together.
std::vector<int> gpus_alike(const GpuInventory& found);

/// `lanes` 0: every usable core. Fails as choose_isa() does; a machine without GPUs is no failure.
Result<DeviceList> list_devices(int lanes);

}  // namespace fastserve
