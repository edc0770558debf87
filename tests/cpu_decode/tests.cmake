fastserve_test(cpu_lanes SOURCES ${CMAKE_CURRENT_LIST_DIR}/lanes_test.cc
                                 ${CMAKE_CURRENT_LIST_DIR}/isa_test.cc USES cpu_lanes)
fastserve_test(cpu_decode SOURCES ${CMAKE_CURRENT_LIST_DIR}/matmul_test.cc
                                  ${CMAKE_CURRENT_LIST_DIR}/attention_test.cc
                                  ${CMAKE_CURRENT_LIST_DIR}/small_ops_test.cc
                                  ${CMAKE_CURRENT_LIST_DIR}/cases.cc
               USES cpu_decode cpu_reference)
