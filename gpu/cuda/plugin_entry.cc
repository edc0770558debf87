// The plugin's one visible symbol, and what stands behind it.
#include "gpu/cuda/cublaslt_engine.h"
#include "gpu/cuda/cudnn_attention.h"
#include "gpu/cuda/device_runtime.h"
#include "gpu/cuda/driver.h"
#include "gpu/cuda/libraries.h"
#include "gpu/cuda/nccl_link.h"
#include "gpu/cuda/peer_link.h"
#include "gpu/gpu_device.h"
#include "gpu/plugin.h"
#include "gpu/staging.h"
#include "gpu_build_id.h"

namespace fastserve::gpu {
namespace {

/// Of the process: the rings of two loads. Never freed, since the driver may go before it would be.
PinnedShelf& pinned_shelf() {
  static PinnedShelf* const shelf = new PinnedShelf(2 * Staging::kPieces * Staging::kPiece);
  return *shelf;
}

class CudaPlugin final : public GpuPlugin {
 public:
  GpuInventory inventory() const override {
    GpuInventory found;
    ask_driver(found);
    found.libraries = {cublaslt().found, cudnn().found, nccl().found};
    return found;
  }

  Result<std::unique_ptr<Device>> make_device(int index, const Path& plans) const override {
    GpuInventory found;
    ask_driver(found);
    if (found.problem) return *found.problem;
    FS_CHECK(index >= 0 && index < static_cast<int>(found.gpus.size()));
    FS_ASSIGN(auto runtime, make_cuda_runtime(index, found.gpus[size_t(index)].name));
    std::unique_ptr<MatmulEngine> fast;
    if (const auto& library = cublaslt(); library.table != nullptr) {
      auto engine =
          make_cublaslt_engine(*library.table, library.found.version, *runtime, plans, &clock_);
      if (engine.ok()) fast = make_finishing_engine(std::move(*engine), *runtime);
      // A library that does not run on this card is done without; numerics_id() tells. What is
      // wrong with the card itself is not.
      else if (engine.error().code != ErrorCode::kUnsupported)
        return engine.error();
    }
    std::unique_ptr<AttentionEngine> attention;
    if (const auto& library = cudnn(); library.table != nullptr)
      attention = make_measured_attention(
          make_cudnn_attention(*library.table, library.found.version, *runtime), *runtime, plans,
          common_attention_kinds(), clock_);
    return make_gpu_device(std::move(runtime), std::move(fast), std::move(attention),
                           &pinned_shelf());
  }

  Result<std::unique_ptr<DeviceLink>> link(std::span<Device* const> devices) const override {
    std::vector<Runtime*> cards;
    for (Device* device : devices) cards.push_back(&runtime_of(*device));
    FS_ASSIGN(auto copies, make_peer_link(cards));
    return make_nccl_link(std::move(cards), std::move(copies), nccl(), clock_);
  }

  Result<std::unique_ptr<DeviceBuffer>> allocate_shared(size_t bytes) const override {
    return allocate_shared_memory(bytes);
  }

 private:
  const SystemClock clock_;
};

const GpuPlugin& plugin() {
  static const CudaPlugin only;
  return only;
}

}  // namespace
}  // namespace fastserve::gpu

extern "C" {
extern __attribute__((visibility("default"))) const fastserve::GpuPluginEntry fastserve_gpu_plugin;
const fastserve::GpuPluginEntry fastserve_gpu_plugin{
    fastserve::kGpuPluginAbi, FASTSERVE_GPU_BUILD_ID, fastserve::gpu::plugin};
}
