fastserve_test(gpu_ops
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/train_op_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/decode_op_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/emulator_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/gpu_step_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/rounding_op_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/sampling_op_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/../cpu/op_harness.cc
  USES gpu_emulated transformer cpu serve
  LABELS sanitized threaded)
