fastserve_test(serve
  SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/sampler_test.cc
  USES serve)
