#include "gpu/cuda/cuda_error.h"

namespace fastserve::gpu {

bool card_is_lost(cudaError_t code) {
  switch (code) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorMisalignedAddress:
    case cudaErrorHardwareStackError:
    case cudaErrorInvalidPc:
    case cudaErrorAssert:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorExternalDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

Error cuda_error(cudaError_t code, const std::string& doing, const std::string& card) {
  cudaGetLastError();
  const std::string what =
      doing + " failed: " + cudaGetErrorString(code) + " (" + cudaGetErrorName(code) + ")";
  if (code == cudaErrorMemoryAllocation)
    return {ErrorCode::kResourceExhausted, what, card,
            "a smaller batch, context or model; nvidia-smi tells who else holds its memory"};
  if (code == cudaErrorECCUncorrectable)
    return {
        ErrorCode::kUnavailable, what, card,
        "its memory is damaged: nvidia-smi -q -d ECC tells how, a reset of the card may mend it"};
  if (card_is_lost(code))
    return {ErrorCode::kUnavailable, what, card,
            "the card is lost to this process: start it again, and see dmesg and nvidia-smi"};
  return {ErrorCode::kInternal, what, card, ""};
}

}  // namespace fastserve::gpu
