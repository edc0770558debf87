# The operations over gpu/runtime.h: compiled by g++ for the emulator and by nvcc for the plugin.
set(FASTSERVE_GPU_SOURCES
  ${PROJECT_SOURCE_DIR}/gpu/decode_attention.cc
  ${PROJECT_SOURCE_DIR}/gpu/decode_ops.cc
  ${PROJECT_SOURCE_DIR}/gpu/decode_pack.cc
  ${PROJECT_SOURCE_DIR}/gpu/gemm/bfloat16_forward.cc
  ${PROJECT_SOURCE_DIR}/gpu/gemm/bfloat16_input_grad.cc
  ${PROJECT_SOURCE_DIR}/gpu/gemm/bfloat16_weight_grad.cc
  ${PROJECT_SOURCE_DIR}/gpu/gemm/float16_forward.cc
  ${PROJECT_SOURCE_DIR}/gpu/gemm/float16_input_grad.cc
  ${PROJECT_SOURCE_DIR}/gpu/gemm/float16_weight_grad.cc
  ${PROJECT_SOURCE_DIR}/gpu/gpu_device.cc
  ${PROJECT_SOURCE_DIR}/gpu/matmul_engine.cc
  ${PROJECT_SOURCE_DIR}/gpu/sampling.cc
  ${PROJECT_SOURCE_DIR}/gpu/staging.cc
  ${PROJECT_SOURCE_DIR}/gpu/train_attention.cc
  ${PROJECT_SOURCE_DIR}/gpu/train_linear.cc
  ${PROJECT_SOURCE_DIR}/gpu/train_ops.cc)
