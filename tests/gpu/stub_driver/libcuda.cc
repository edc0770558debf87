// libcuda.so.1 as far as the inventory, cuBLASLt and cuDNN ask it about a card.
#include <cuda.h>
#include <dlfcn.h>

#include <cstring>
#include <string>

#include "tests/gpu/stub_driver/device_description.h"

namespace {

using stub_driver::device;

int not_supported() { return CUDA_ERROR_NOT_SUPPORTED; }

CUresult scripted(const char* call) { return static_cast<CUresult>(device().failure(call)); }

// What handles of code point at: nothing looks inside.
char the_library, the_kernel, the_function;

int attribute(int which) {
  const auto number = [](const char* key, int64_t otherwise) {
    return static_cast<int>(device().number(key, otherwise));
  };
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      return number("multiProcessorCount", 1);
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      return number("deviceVer", 900) / 100;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      return number("deviceVer", 900) / 10 % 10;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_MODE:
      return number("computeMode", 0);
    default:
      return 0;
  }
}

void* function_of(const char* name) {
  static void* const self = [] {
    Dl_info here{};
    dladdr(reinterpret_cast<void*>(&not_supported), &here);
    return dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }();
  for (const char* form : {"_v2", ""})
    if (void* found = dlsym(self, (std::string(name) + form).c_str())) return found;
  return reinterpret_cast<void*>(&not_supported);
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned) { return scripted(__func__); }
CUresult cuDriverGetVersion(int* version) {
  *version = static_cast<int>(device().number("driverVer", 13000));
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int* count) {
  *count = static_cast<int>(device().number("devices", 1));
  return scripted(__func__);
}
CUresult cuDeviceGet(CUdevice* handle, int index) {
  *handle = index;
  return scripted(__func__);
}
CUresult cuDeviceGetName(char* name, int size, CUdevice) {
  std::strncpy(name, device().name.c_str(), static_cast<size_t>(size) - 1);
  name[size - 1] = '\0';
  return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
  *bytes = static_cast<size_t>(device().number("totalGlobalMem", 1 << 30));
  return scripted(__func__);
}
CUresult cuDeviceGetPCIBusId(char* id, int size, CUdevice) {
  std::strncpy(id, "0000:01:00.0", static_cast<size_t>(size));
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  *value = attribute(which);
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult, const char** text) {
  *text = "as the test's script says";
  return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult, const char** text) {
  *text = "CUDA_ERROR_SCRIPTED";
  return CUDA_SUCCESS;
}
CUresult cuGetProcAddress_v2(const char* name, void** function, int, cuuint64_t,
                             CUdriverProcAddressQueryResult* status) {
  *function = function_of(name);
  if (status != nullptr) *status = CU_GET_PROC_ADDRESS_SUCCESS;
  return CUDA_SUCCESS;
}

// What cuDNN wants to find before it plans. Code "loads"; nothing runs.
CUresult cuLibraryLoadData(CUlibrary* library, const void*, CUjit_option*, void**, unsigned,
                           CUlibraryOption*, void**, unsigned) {
  *library = reinterpret_cast<CUlibrary>(&the_library);
  return CUDA_SUCCESS;
}
CUresult cuLibraryUnload(CUlibrary) { return CUDA_SUCCESS; }
CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary, const char*) {
  *kernel = reinterpret_cast<CUkernel>(&the_kernel);
  return CUDA_SUCCESS;
}
CUresult cuKernelGetFunction(CUfunction* function, CUkernel) {
  *function = reinterpret_cast<CUfunction>(&the_function);
  return CUDA_SUCCESS;
}
CUresult cuKernelGetAttribute(int* value, CUfunction_attribute, CUkernel, CUdevice) {
  *value = 0;
  return CUDA_SUCCESS;
}
CUresult cuKernelSetAttribute(CUfunction_attribute, int, CUkernel, CUdevice) {
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute, CUfunction) {
  *value = 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }

#define NOT_SUPPORTED(name)                                                \
  __attribute__((visibility("default"))) int stub_##name() __asm__(#name); \
  int stub_##name() { return CUDA_ERROR_NOT_SUPPORTED; }
NOT_SUPPORTED(cuCtxGetCurrent)
NOT_SUPPORTED(cuCtxGetLimit)
NOT_SUPPORTED(cuCtxPopCurrent)
NOT_SUPPORTED(cuCtxPushCurrent)
NOT_SUPPORTED(cuStreamGetCtx)
NOT_SUPPORTED(cuLinkCreate)
NOT_SUPPORTED(cuLinkAddData)
NOT_SUPPORTED(cuLinkComplete)
NOT_SUPPORTED(cuLinkDestroy)
NOT_SUPPORTED(cuLaunchKernel)
NOT_SUPPORTED(cuLaunchKernelEx)
NOT_SUPPORTED(cuLaunchCooperativeKernel)
NOT_SUPPORTED(cuLibraryLoadFromFile)
NOT_SUPPORTED(cuOccupancyMaxPotentialClusterSize)

}  // extern "C"
