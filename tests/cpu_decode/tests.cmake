fastserve_test(cpu_lanes SOURCES ${CMAKE_CURRENT_LIST_DIR}/lanes_test.cc
                                 ${CMAKE_CURRENT_LIST_DIR}/isa_test.cc USES cpu_lanes)
