// Finds and opens the GPU plugin: all that other rooms see of a GPU.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "gpu/inventory.h"
#include "model/device_link.h"

namespace fastserve {

class GpuPlugin;

/// Where the plugin may lie.
struct GpuSearch {
  Path plugin;  ///< this file and no other; empty: the first one in `folders`
  std::vector<Path> folders;

  /// $FASTSERVE_CUDA_PLUGIN, else beside the program, then in ../lib and ../lib/fastserve from
  /// there.
  static GpuSearch standard();
};

/// An opened plugin. It stays in the process: devices made by it outlive the GpuLoader.
///
/// Threads: any.
class GpuLoader {
 public:
  /// kNotFound when there is no plugin, kCorrupt for a file that is none, kUnsupported for one of
  /// another build; each says what to do. That there is no GPU is told by inventory().
  static Result<GpuLoader> open(const GpuSearch& search);

  const Path& path() const { return path_; }
  GpuInventory inventory() const;
  /// The GPU of that index, or why it cannot be had. `plans` is a folder that keeps what libraries
  /// found best for this card; empty: they search at each start.
  Result<std::unique_ptr<Device>> make_device(int index, const Path& plans) const;
  /// Joins devices of make_device(), each of another card.
  Result<std::unique_ptr<DeviceLink>> link(std::span<Device* const> devices) const;
  /// Memory that the host and every card see at one address, for tests that look at what an op
  /// wrote.
  Result<std::unique_ptr<DeviceBuffer>> allocate_shared(size_t bytes) const;
  /// The index of the first GPU that can be used, or one sentence why there is none.
  Result<int> first_usable() const;

 private:
  GpuLoader(Path path, const GpuPlugin& plugin) : path_(std::move(path)), plugin_(&plugin) {}
  Path path_;
  const GpuPlugin* plugin_;
};

/// Names the headers, the compiler and the switches that both sides of the border were built with.
const char* gpu_build_id();

}  // namespace fastserve
