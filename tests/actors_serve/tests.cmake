fastserve_test(serving_system
  SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/compression_system_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/serving_system_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/turns_test.cc
  USES actors cpu LABELS sanitized threaded)
fastserve_order_caf(serving_system_test)
