# The op harness on the emulated device. Several programs, so that cores share what is long under sanitizers.
function(gpu_ops_test name)
  list(TRANSFORM ARGN PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
  fastserve_test(${name} SOURCES ${ARGN} ${CMAKE_CURRENT_LIST_DIR}/../cpu/op_harness.cc
    USES gpu_emulated transformer cpu serve LABELS sanitized threaded)
  set_tests_properties(${name} PROPERTIES COST 1000)  # begins first: on one core it takes longest
  if(FASTSERVE_SANITIZE)
    set_tests_properties(${name} PROPERTIES TIMEOUT 3600)
  endif()
endfunction()

gpu_ops_test(gpu_training_ops train_op_test.cc train_graph_test.cc rounding_op_test.cc attention_engine_test.cc
  gpu_step_test.cc beside_test.cc finishing_test.cc emulator_test.cc graph_test.cc grid_test.cc)
gpu_ops_test(gpu_decode_attention decode_attention_op_test.cc)
gpu_ops_test(gpu_decode_ops decode_op_test.cc decode_graph_test.cc fused_step_test.cc sampling_op_test.cc
  stored_weights_test.cc direct_rows_test.cc preloaded_test.cc staging_test.cc)

if(FASTSERVE_SANITIZE STREQUAL "thread")  # a barrier left out of a kernel is a race that TSan reports
  add_test(NAME gpu_race_is_seen COMMAND gpu_training_ops_test --no-skip "--test-case=a missing barrier*")
  set_tests_properties(gpu_race_is_seen PROPERTIES WILL_FAIL TRUE TIMEOUT 600 LABELS threaded)
endif()
