fastserve_test(op_harness
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/op_harness.cc
          ${CMAKE_CURRENT_LIST_DIR}/norm_op_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/matmul_op_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/attention_op_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/loss_op_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/decode_op_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/decode_attention_op_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/finite_difference_test.cc
  USES cpu)
