fastserve_test(transformer
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/parity_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/parity_library_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/train_pass_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/decoder_test.cc
  USES transformer cpu)
