// A plugin of other sources: its function must never be called.
#include <cstdlib>

#include "gpu/plugin.h"

extern "C" {
extern const fastserve::GpuPluginEntry fastserve_gpu_plugin;
const fastserve::GpuPluginEntry fastserve_gpu_plugin{
    fastserve::kGpuPluginAbi, "built-yesterday",
    []() -> const fastserve::GpuPlugin& { std::abort(); }};
}
