fastserve_test(base SOURCES ${CMAKE_CURRENT_LIST_DIR}/base_test.cc USES base LABELS sanitized)
