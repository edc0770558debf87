fastserve_test(tidy SOURCES ${CMAKE_CURRENT_LIST_DIR}/tidy_test.cc USES base)

# Every header compiles alone.
add_test(NAME headers_compile_alone
  COMMAND ${CMAKE_CURRENT_LIST_DIR}/headers_compile_alone.sh ${CMAKE_CXX_COMPILER} ${PROJECT_SOURCE_DIR}
          ${PROJECT_BINARY_DIR})
set_tests_properties(headers_compile_alone PROPERTIES PROCESSORS 2)
