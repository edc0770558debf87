add_executable(net_mesh ${CMAKE_CURRENT_LIST_DIR}/net_mesh.cc)
target_link_libraries(net_mesh PRIVATE fastserve_flags fastserve_net)
