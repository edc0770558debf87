file(GLOB training_system_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*_test.cc)
fastserve_test(training_system SOURCES ${training_system_tests}
  USES actors cpu_reference LABELS sanitized threaded)
target_include_directories(training_system_test PRIVATE ${CMAKE_CURRENT_LIST_DIR}/..
  ${CMAKE_CURRENT_LIST_DIR})
