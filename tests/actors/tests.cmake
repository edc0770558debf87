fastserve_test(training_system SOURCES ${CMAKE_CURRENT_LIST_DIR}/training_system_test.cc
  USES actors cpu_reference LABELS sanitized threaded)
fastserve_order_caf(training_system_test)
# Hundreds of real jobs on more lanes than cores, and figures of memory: minutes under a sanitizer,
# which sees the same threads at work in the tests above.
fastserve_test(training_bits SOURCES ${CMAKE_CURRENT_LIST_DIR}/same_bits_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/memory_test.cc USES actors cpu_reference)
foreach(test training_system_test training_bits_test)
  target_include_directories(${test} PRIVATE ${CMAKE_CURRENT_LIST_DIR}/.. ${CMAKE_CURRENT_LIST_DIR})
endforeach()
fastserve_test(remoting SOURCES ${CMAKE_CURRENT_LIST_DIR}/remoting_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/asked_peer_test.cc ${CMAKE_CURRENT_LIST_DIR}/remoting_child.cc
  USES actors net LIBRARIES ${CAF_IO_LIBRARY} ${CAF_CORE_LIBRARY}
  LABELS sanitized threaded)
fastserve_order_caf(remoting_test)
fastserve_test(cluster_training SOURCES ${CMAKE_CURRENT_LIST_DIR}/cluster_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/local_steps_test.cc ${CMAKE_CURRENT_LIST_DIR}/loose_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/ledger_test.cc ${CMAKE_CURRENT_LIST_DIR}/removed_node_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/shard_places_test.cc ${CMAKE_CURRENT_LIST_DIR}/node_checkpoints_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/streams_test.cc ${CMAKE_CURRENT_LIST_DIR}/replicas_test.cc
  USES actors cpu_reference LABELS sanitized threaded)
target_include_directories(cluster_training_test PRIVATE ${CMAKE_CURRENT_LIST_DIR}/.. ${CMAKE_CURRENT_LIST_DIR})
fastserve_order_caf(cluster_training_test)
