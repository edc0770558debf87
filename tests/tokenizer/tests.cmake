file(GLOB tokenizer_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*_test.cc)
fastserve_test(tokenizer SOURCES ${tokenizer_tests} USES tokenizer)
