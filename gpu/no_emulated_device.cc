// In place of gpu/simt/emulated_device.cc where the emulator is left out.
#include "gpu/emulated_device.h"

namespace fastserve {

bool has_emulated_device() { return false; }

Result<std::unique_ptr<Device>> make_emulated_device(int, uint64_t) {
  return Error{ErrorCode::kUnsupported, "this build has no emulated GPU in it", "",
               "configure with -DFASTSERVE_EMULATED_DEVICE=ON"};
}

}  // namespace fastserve
