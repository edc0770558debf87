fastserve_test(store
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/store_test.cc ${CMAKE_CURRENT_LIST_DIR}/store_damage_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/store_crash_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/state_store_test.cc ${CMAKE_CURRENT_LIST_DIR}/transfer_test.cc
  USES store)
