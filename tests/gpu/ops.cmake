fastserve_test(gpu_ops
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/attention_engine_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/train_graph_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/train_op_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/beside_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/decode_op_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/direct_rows_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/emulator_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/finishing_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/fused_step_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/graph_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/grid_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/decode_graph_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/gpu_step_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/preloaded_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/rounding_op_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/sampling_op_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/staging_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/stored_weights_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/../cpu/op_harness.cc
  USES gpu_emulated transformer cpu serve
  LABELS sanitized threaded)
set_tests_properties(gpu_ops PROPERTIES COST 1000)  # begins first: on one core it takes longest
if(FASTSERVE_SANITIZE STREQUAL "thread")  # a barrier left out of a kernel is a race that TSan reports
  add_test(NAME gpu_race_is_seen COMMAND gpu_ops_test --no-skip "--test-case=a missing barrier*")
  set_tests_properties(gpu_race_is_seen PROPERTIES WILL_FAIL TRUE TIMEOUT 600 LABELS threaded)
endif()
