# The command as a user runs it: real processes, loopback only, a folder of its own. Those of a cluster keep two
# cores busy.
foreach(script setup words terminal main_job models_and_compress interruptions bad_input serving parity_verdicts)
  add_test(NAME cli_${script}
    COMMAND ${CMAKE_CURRENT_LIST_DIR}/${script}.sh $<TARGET_FILE:fsctl> ${PROJECT_SOURCE_DIR})
  set_tests_properties(cli_${script} PROPERTIES TIMEOUT 900)
endforeach()
add_test(NAME cli_parity COMMAND fsctl parity ${PROJECT_SOURCE_DIR}/tests/data/reference)

# The same against a cluster's coordinator, which stands in for one.
add_executable(cluster_standin ${CMAKE_CURRENT_LIST_DIR}/cluster_standin.cc)
target_link_libraries(cluster_standin PRIVATE fastserve_flags fastserve_rpc)
add_test(NAME cli_cluster_client
  COMMAND ${CMAKE_CURRENT_LIST_DIR}/cluster_client.sh $<TARGET_FILE:fsctl> ${PROJECT_SOURCE_DIR}
          $<TARGET_FILE:cluster_standin>)
set_tests_properties(cli_cluster_client PROPERTIES TIMEOUT 300)

# Real processes of a cluster, killed and stopped while a job runs. The long version: see the script.
add_test(NAME cli_cluster_chaos
  COMMAND ${CMAKE_CURRENT_LIST_DIR}/cluster_chaos.sh $<TARGET_FILE:fsctl> ${PROJECT_SOURCE_DIR}/data/tinyshakespeare
          6 3 1500)
set_tests_properties(cli_cluster_chaos PROPERTIES PROCESSORS 2 TIMEOUT 600)
add_test(NAME cli_cluster_chaos_apart
  COMMAND ${CMAKE_CURRENT_LIST_DIR}/cluster_chaos.sh $<TARGET_FILE:fsctl> ${PROJECT_SOURCE_DIR}/data/tinyshakespeare
          6 4 3000 "" local:16)
set_tests_properties(cli_cluster_chaos_apart PROPERTIES PROCESSORS 2 TIMEOUT 600)
add_test(NAME cli_cluster_chaos_pieces
  COMMAND ${CMAKE_CURRENT_LIST_DIR}/cluster_chaos.sh $<TARGET_FILE:fsctl> ${PROJECT_SOURCE_DIR}/data/tinyshakespeare
          6 5 1500 "" exact nodes)
set_tests_properties(cli_cluster_chaos_pieces PROPERTIES PROCESSORS 2 TIMEOUT 600)
add_test(NAME cli_cluster_chaos_held_twice
  COMMAND ${CMAKE_CURRENT_LIST_DIR}/cluster_chaos.sh $<TARGET_FILE:fsctl> ${PROJECT_SOURCE_DIR}/data/tinyshakespeare
          3 5 1500 "" exact coordinator 1)
set_tests_properties(cli_cluster_chaos_held_twice PROPERTIES PROCESSORS 2 TIMEOUT 600)

add_test(NAME cli_plain_bulk
  COMMAND ${CMAKE_CURRENT_LIST_DIR}/plain_bulk.sh $<TARGET_FILE:fsctl> ${PROJECT_SOURCE_DIR}/data/tinyshakespeare)
set_tests_properties(cli_plain_bulk PROPERTIES PROCESSORS 2 TIMEOUT 300)

# The whole main job by a client that has an address and a token alone.
add_test(NAME cli_cluster_models
  COMMAND ${CMAKE_CURRENT_LIST_DIR}/cluster_models.sh $<TARGET_FILE:fsctl> ${PROJECT_SOURCE_DIR})
set_tests_properties(cli_cluster_models PROPERTIES PROCESSORS 2 TIMEOUT 600)

if(FASTSERVE_EMULATED_DEVICE)
  add_test(NAME cli_node_cards
    COMMAND ${CMAKE_CURRENT_LIST_DIR}/node_cards.sh $<TARGET_FILE:fsctl> ${PROJECT_SOURCE_DIR})
  set_tests_properties(cli_node_cards PROPERTIES PROCESSORS 2 TIMEOUT 300)
endif()

# Nonsense at every port of a cluster, by strangers and by members. The long version: see the script.
add_executable(port_noise ${CMAKE_CURRENT_LIST_DIR}/port_noise.cc)
target_link_libraries(port_noise PRIVATE fastserve_flags fastserve_cluster fastserve_net)
add_test(NAME cli_ports_under_noise
  COMMAND ${CMAKE_CURRENT_LIST_DIR}/ports_under_noise.sh $<TARGET_FILE:fsctl> $<TARGET_FILE:port_noise>
          ${PROJECT_SOURCE_DIR}/data/tinyshakespeare)
set_tests_properties(cli_ports_under_noise PROPERTIES PROCESSORS 2 TIMEOUT 600)

# The node that compresses is killed in the middle.
add_test(NAME cli_cluster_compress
  COMMAND ${CMAKE_CURRENT_LIST_DIR}/cluster_compress.sh $<TARGET_FILE:fsctl> ${PROJECT_SOURCE_DIR})
set_tests_properties(cli_cluster_compress PROPERTIES PROCESSORS 2 TIMEOUT 300)
