#include "gpu/cuda/driver.h"

#include <cuda.h>

#include "gpu/cuda/shared_library.h"

namespace fastserve::gpu {
namespace {

#define FS_DRIVER_FUNCTIONS(X) \
  X(cuInit)                    \
  X(cuDriverGetVersion)        \
  X(cuDeviceGetCount)          \
  X(cuDeviceGet)               \
  X(cuDeviceGetName)           \
  X(cuDeviceGetAttribute)      \
  X(cuDeviceTotalMem_v2)       \
  X(cuDeviceGetPCIBusId)       \
  X(cuGetErrorString)

struct Driver {
#define FS_DECLARE(name) decltype(&::name) name = nullptr;
  FS_DRIVER_FUNCTIONS(FS_DECLARE)
#undef FS_DECLARE

  static Result<Driver> open() {
    FS_ASSIGN(const SharedLibrary library, SharedLibrary::open("libcuda.so.1"));
    Driver driver;
#define FS_FILL(name) FS_TRY(library.fill(driver.name, #name));
    FS_DRIVER_FUNCTIONS(FS_FILL)
#undef FS_FILL
    return driver;
  }
};

std::string cuda_version(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string said(const Driver& driver, CUresult code) {
  const char* text = nullptr;
  if (driver.cuGetErrorString(code, &text) != CUDA_SUCCESS || text == nullptr) text = "no reason";
  return std::string(text) + " (error " + std::to_string(code) + ")";
}

Error no_driver(const Error& why) {
  if (why.code == ErrorCode::kUnsupported)
    return {ErrorCode::kUnsupported, "the NVIDIA driver is too old: its library " + why.what,
            why.where, "install driver 580 or newer"};
  return {ErrorCode::kNotFound, "no NVIDIA driver is installed (" + why.what + ")", "",
          "install the driver (Debian: nvidia-driver; in a container, start it with --gpus all)"};
}

Error refused(const Driver& driver, CUresult code) {
  if (code == CUDA_ERROR_NO_DEVICE)
    return {ErrorCode::kNotFound, "the NVIDIA driver shows no GPU", "",
            "nvidia-smi lists the machine's; CUDA_VISIBLE_DEVICES may hide them"};
  if (code == CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)
    return {ErrorCode::kUnsupported,
            "the driver's library and its kernel module are of different versions", "",
            "restart the machine after the driver's upgrade"};
  return {ErrorCode::kUnavailable, "the NVIDIA driver does not start: " + said(driver, code), "",
          "nvidia-smi and dmesg tell more"};
}

GpuInfo ask_card(const Driver& driver, int index) {
  GpuInfo gpu;
  gpu.index = index;
  CUdevice device = 0;
  if (const CUresult code = driver.cuDeviceGet(&device, index); code != CUDA_SUCCESS) {
    gpu.problem = "cannot be opened: " + said(driver, code);
    return gpu;
  }
  char name[256] = "", bus[32] = "";
  if (driver.cuDeviceGetName(name, sizeof name - 1, device) == CUDA_SUCCESS) gpu.name = name;
  if (driver.cuDeviceGetPCIBusId(bus, sizeof bus - 1, device) == CUDA_SUCCESS) gpu.bus = bus;
  size_t bytes = 0;
  const CUresult sized = driver.cuDeviceTotalMem_v2(&bytes, device);
  gpu.memory_bytes = bytes;
  int compute_mode = CU_COMPUTEMODE_DEFAULT;
  const auto ask = [&](CUdevice_attribute which, int& into) {
    driver.cuDeviceGetAttribute(&into, which, device);
  };
  ask(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, gpu.major);
  ask(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, gpu.minor);
  ask(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, gpu.multiprocessors);
  ask(CU_DEVICE_ATTRIBUTE_COMPUTE_MODE, compute_mode);
  if (sized != CUDA_SUCCESS)
    gpu.problem = "does not tell its memory: " + said(driver, sized);
  else if (gpu.major < kLeastMajor)
    gpu.problem = "has compute capability " + std::to_string(gpu.major) + "." +
                  std::to_string(gpu.minor) + "; the least that is supported is " +
                  std::to_string(kLeastMajor) + "." + std::to_string(kLeastMinor) + " (A100)";
  else if (compute_mode == CU_COMPUTEMODE_PROHIBITED)
    gpu.problem = "is closed to computing; nvidia-smi -c DEFAULT opens it";
  return gpu;
}

}  // namespace

void ask_driver(GpuInventory& into) {
  into.runtime = cuda_version(CUDA_VERSION);
  const auto driver = Driver::open();
  if (!driver.ok()) {
    into.problem = no_driver(driver.error());
    return;
  }
  int version = 0;
  if (driver->cuDriverGetVersion(&version) == CUDA_SUCCESS) into.driver = cuda_version(version);
  // Within one major version any driver runs what any toolkit built.
  if (version / 1000 < CUDA_VERSION / 1000) {
    into.problem =
        Error{ErrorCode::kUnsupported,
              "the NVIDIA driver speaks CUDA " + cuda_version(version) +
                  " and the GPU plugin needs " + std::to_string(CUDA_VERSION / 1000) + ".0",
              "", "install driver 580 or newer"};
    return;
  }
  int count = 0;
  CUresult code = driver->cuInit(0);
  if (code == CUDA_SUCCESS) code = driver->cuDeviceGetCount(&count);
  if (code == CUDA_SUCCESS && count == 0) code = CUDA_ERROR_NO_DEVICE;
  if (code != CUDA_SUCCESS) {
    into.problem = refused(*driver, code);
    return;
  }
  for (int index = 0; index < count; index++) into.gpus.push_back(ask_card(*driver, index));
}

}  // namespace fastserve::gpu
