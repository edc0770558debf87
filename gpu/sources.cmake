# The operations over gpu/runtime.h: compiled by g++ for the emulator and by nvcc for the plugin.
set(FASTSERVE_GPU_SOURCES
  ${PROJECT_SOURCE_DIR}/gpu/gpu_device.cc)
