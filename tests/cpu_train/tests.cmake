fastserve_test(cpu_train SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/matmul_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/attention_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/rows_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/lanes_test.cc
  USES cpu LABELS sanitized)
fastserve_test(cpu_train_threads SOURCES
  ${CMAKE_CURRENT_LIST_DIR}/lanes_test.cc
  USES cpu LABELS threaded)
