# The library as a host program sees it: installed into a folder of its own, found by find_package.
add_test(NAME embed_from_installed_tree
  COMMAND ${CMAKE_CURRENT_LIST_DIR}/embed_from_installed_tree.sh ${CMAKE_BINARY_DIR} ${PROJECT_SOURCE_DIR} ${CMAKE_CXX_COMPILER})
set_tests_properties(embed_from_installed_tree PROPERTIES PROCESSORS 2 RESOURCE_LOCK installing TIMEOUT 900)
add_test(NAME client_from_installed_tree
  COMMAND ${CMAKE_CURRENT_LIST_DIR}/client_from_installed_tree.sh ${CMAKE_BINARY_DIR} ${PROJECT_SOURCE_DIR} ${CMAKE_CXX_COMPILER})
set_tests_properties(client_from_installed_tree PROPERTIES PROCESSORS 2 RESOURCE_LOCK installing TIMEOUT 900)

# What the public header promises, through the library alone.
fastserve_test(embedding SOURCES ${CMAKE_CURRENT_LIST_DIR}/embedding_test.cc LIBRARIES fastserve
  LABELS sanitized)
target_include_directories(embedding_test PRIVATE ${PROJECT_SOURCE_DIR})

fastserve_test(device_choice SOURCES ${CMAKE_CURRENT_LIST_DIR}/device_choice_test.cc USES api LABELS sanitized)

fastserve_test(train_request SOURCES ${CMAKE_CURRENT_LIST_DIR}/train_request_test.cc USES api LABELS sanitized)

fastserve_test(transfer SOURCES ${CMAKE_CURRENT_LIST_DIR}/transfer_test.cc USES api LABELS sanitized threaded)
