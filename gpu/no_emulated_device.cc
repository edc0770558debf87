// In place of gpu/simt/emulated_device.cc where the emulator is left out.
#include "gpu/emulated_device.h"

namespace fastserve {

bool has_emulated_device() { return false; }

namespace {

Error left_out() {
  return {ErrorCode::kUnsupported, "this build has no emulated GPU in it", "",
          "configure with -DFASTSERVE_EMULATED_DEVICE=ON"};
}

}  // namespace

Result<std::unique_ptr<Device>> make_emulated_device(int, uint64_t) { return left_out(); }
Result<std::unique_ptr<DeviceLink>> link_emulated_devices(std::span<Device* const>) {
  return left_out();
}

}  // namespace fastserve
