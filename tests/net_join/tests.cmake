fastserve_test(net_join SOURCES ${CMAKE_CURRENT_LIST_DIR}/join_test.cc
  USES net cluster store LABELS sanitized threaded)
