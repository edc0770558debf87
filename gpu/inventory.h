// What a GPU plugin found on this machine, in plain types.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace fastserve {

/// One library that the plugin opens at run time.
struct GpuLibrary {
  std::string name;     ///< "cuBLASLt"
  std::string version;  ///< "13.1.0"; empty when it was not opened
  std::string path;     ///< the file that was opened
  std::string problem;  ///< why it is not used and what is done without it; empty when it is
};

struct GpuInfo {
  int index = 0;             ///< as the driver counts
  std::string name;          ///< "NVIDIA H100 80GB HBM3"
  int major = 0, minor = 0;  ///< compute capability
  uint64_t memory_bytes = 0;
  int multiprocessors = 0;
  std::string bus;      ///< "0000:65:00.0"
  std::string problem;  ///< why it cannot be used; empty when it can
};

struct GpuInventory {
  std::string driver;   ///< CUDA version that the driver speaks: "13.0"; empty without one
  std::string runtime;  ///< CUDA version that the plugin was built with
  std::vector<GpuInfo> gpus;
  std::vector<GpuLibrary> libraries;
  /// Why no GPU at all can be used: no driver, an old one, none in the machine.
  std::optional<Error> problem;
};

}  // namespace fastserve
