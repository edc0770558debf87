fastserve_test(rpc
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/client_test.cc ${CMAKE_CURRENT_LIST_DIR}/hostile_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/wire_test.cc
  USES rpc schema LABELS sanitized threaded)
