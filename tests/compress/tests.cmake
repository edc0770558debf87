fastserve_test(compress
  SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/contract_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/pruning_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/quantisers_test.cc
  USES compress)
