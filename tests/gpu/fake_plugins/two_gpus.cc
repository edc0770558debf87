// A plugin on a machine with a GPU that is too old and one that can be used.
#include "gpu/plugin.h"
#include "gpu_build_id.h"

namespace {
using namespace fastserve;

class TwoGpus final : public GpuPlugin {
 public:
  GpuInventory inventory() const override {
    GpuInventory found;
    found.driver = found.runtime = "13.0";
    found.gpus.resize(2);
    found.gpus[0].name = "old";
    found.gpus[0].problem = "has compute capability 7.5 and 8.0 is the least";
    found.gpus[1].index = 1;
    found.gpus[1].name = "new";
    return found;
  }
  Result<std::unique_ptr<Device>> make_device(int index, const Path&) const override {
    return Error{ErrorCode::kResourceExhausted, "made GPU " + std::to_string(index), "", ""};
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
                                            static const TwoGpus plugin;
                                            return plugin;
                                          }};
}
