// A plugin on a machine without a driver.
#include "gpu/plugin.h"
#include "gpu_build_id.h"

namespace {
using namespace fastserve;

class NoDriver final : public GpuPlugin {
 public:
  GpuInventory inventory() const override {
    GpuInventory found;
    found.problem = Error{ErrorCode::kNotFound, "there is no driver", "libcuda.so.1", "install it"};
    return found;
  }
  Result<std::unique_ptr<Device>> make_device(int, const Path&) const override {
    return Error{ErrorCode::kInternal, "must not be asked", "", ""};
  }
  Result<std::unique_ptr<DeviceLink>> link(std::span<Device* const>) const override {
    return Error{ErrorCode::kInternal, "must not be asked", "", ""};
  }
  Result<std::unique_ptr<DeviceBuffer>> allocate_shared(size_t) const override {
    return Error{ErrorCode::kInternal, "must not be asked", "", ""};
  }
};
}  // namespace

extern "C" {
extern const GpuPluginEntry fastserve_gpu_plugin;
const GpuPluginEntry fastserve_gpu_plugin{kGpuPluginAbi, FASTSERVE_GPU_BUILD_ID,
                                          []() -> const GpuPlugin& {
                                            static const NoDriver plugin;
                                            return plugin;
                                          }};
}
