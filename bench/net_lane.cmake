add_executable(net_lane ${CMAKE_CURRENT_LIST_DIR}/net_lane.cc)
target_link_libraries(net_lane PRIVATE fastserve_flags fastserve_net)
