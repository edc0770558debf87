file(GLOB train_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*_test.cc)
fastserve_test(train SOURCES ${train_tests} USES train cpu LABELS sanitized)
target_include_directories(train_test PRIVATE ${CMAKE_CURRENT_LIST_DIR})
