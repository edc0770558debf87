fastserve_test(compress
  SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/compressor_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/contract_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/measure_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/neurons_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/pruning_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/quantisers_test.cc
  USES compress cpu)
