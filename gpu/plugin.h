// The border between the program and libfastserve_cuda.so.
//
// Both sides are C++ of one build: GpuPluginEntry's first two fields can be read by any build, and
// nothing else is touched until they agree.
#pragma once

#include <cstdint>
#include <memory>

#include "base/file.h"
#include "gpu/inventory.h"
#include "model/device_link.h"

namespace fastserve {

/// Implemented by the plugin, once a process. Threads: any.
class GpuPlugin {
 public:
  virtual ~GpuPlugin() = default;
  virtual GpuInventory inventory() const = 0;
  /// The device of GpuInfo::index. `plans`: the folder for what searches found; empty: none.
  /// Errors: as the inventory tells them; kResourceExhausted.
  virtual Result<std::unique_ptr<Device>> make_device(int index, const Path& plans) const = 0;
  /// Joins devices of make_device(), each of another card. Errors: as theirs.
  virtual Result<std::unique_ptr<DeviceLink>> link(std::span<Device* const> devices) const = 0;
  /// Memory that the host and every card see at one address: slow, for tests.
  virtual Result<std::unique_ptr<DeviceBuffer>> allocate_shared(size_t bytes) const = 0;
};

/// Changes with GpuPluginEntry, and only then: everything else is in the build id.
inline constexpr uint32_t kGpuPluginAbi = 1;

/// The plugin's one visible symbol.
struct GpuPluginEntry {
  uint32_t abi;          ///< kGpuPluginAbi
  const char* build_id;  ///< gpu_build_id() of the plugin
  const GpuPlugin& (*plugin)();
};
inline constexpr const char* kGpuPluginSymbol = "fastserve_gpu_plugin";

}  // namespace fastserve
