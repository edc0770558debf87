fastserve_test(training_system SOURCES ${CMAKE_CURRENT_LIST_DIR}/training_system_test.cc
  USES actors cpu_reference LABELS sanitized threaded)
target_include_directories(training_system_test PRIVATE ${CMAKE_CURRENT_LIST_DIR}/..)
