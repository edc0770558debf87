// The plugin, opened over the stand-in for NVIDIA's runtime.
#pragma once

#include <dlfcn.h>
#include <doctest/doctest.h>

#include "gpu/loader.h"
#include "tests/gpu/stub_driver/stub_driver.h"

namespace fastserve {

inline void* opened(const char* file) {
  void* library = ::dlopen(file, RTLD_NOW | RTLD_LOCAL);
  REQUIRE_MESSAGE(library != nullptr, ::dlerror());
  return library;
}

/// The plugin over stand-ins, which are in the process before it asks for NVIDIA's by name.
inline const GpuLoader& plugin() {
  static const GpuLoader loader = [] {
    opened(FASTSERVE_STAND_IN_DRIVER);
    opened(FASTSERVE_STAND_IN_CUBLASLT);
    opened(FASTSERVE_STAND_IN_NCCL);
    auto made = GpuLoader::open({FASTSERVE_PLUGIN_ON_STAND_IN, {}});
    REQUIRE_MESSAGE(made.ok(), made.error().message());
    return std::move(*made);
  }();
  return loader;
}

inline stub_driver::Control& card() {
  static stub_driver::Control* const control = [] {
    plugin();
    void* found = ::dlsym(opened(FASTSERVE_PLUGIN_ON_STAND_IN), stub_driver::kControlSymbol);
    REQUIRE(found != nullptr);
    return reinterpret_cast<stub_driver::Control* (*)()>(found)();
  }();
  return *control;
}

}  // namespace fastserve
