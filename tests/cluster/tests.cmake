fastserve_test(cluster
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/tokens_test.cc ${CMAKE_CURRENT_LIST_DIR}/membership_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/membership_clock_test.cc ${CMAKE_CURRENT_LIST_DIR}/unfit_nodes_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/duty_test.cc ${CMAKE_CURRENT_LIST_DIR}/duty_board_test.cc
  USES cluster net store LABELS sanitized threaded)
fastserve_test(cluster_folder SOURCES ${CMAKE_CURRENT_LIST_DIR}/cluster_folder_test.cc
  USES api cluster net LABELS sanitized)
add_test(NAME cluster_life
  COMMAND ${CMAKE_CURRENT_LIST_DIR}/cluster_life.sh $<TARGET_FILE:fsctl> ${PROJECT_SOURCE_DIR})
set_tests_properties(cluster_life PROPERTIES PROCESSORS 2 TIMEOUT 300)
