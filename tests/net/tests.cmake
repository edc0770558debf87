fastserve_test(net SOURCES ${CMAKE_CURRENT_LIST_DIR}/bulk_lane_test.cc ${CMAKE_CURRENT_LIST_DIR}/tls_test.cc
  USES net LABELS sanitized threaded)
