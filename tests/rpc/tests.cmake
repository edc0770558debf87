fastserve_test(rpc
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/client_test.cc ${CMAKE_CURRENT_LIST_DIR}/hostile_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/wire_test.cc
  USES rpc schema LABELS sanitized threaded)
fastserve_test(rpc_cluster
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/cluster_calls_test.cc ${CMAKE_CURRENT_LIST_DIR}/cluster_hostile_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/cluster_tls_test.cc ${CMAKE_CURRENT_LIST_DIR}/cluster_watch_test.cc
  USES rpc schema LABELS sanitized threaded)
