fastserve_test(model
  SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/config_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/huggingface_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/malformed_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/parameters_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/quantised_format_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/tensor_test.cc
  USES model)
