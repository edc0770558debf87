fastserve_test(serving_system
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/serving_system_test.cc
  USES actors cpu LABELS sanitized threaded)
