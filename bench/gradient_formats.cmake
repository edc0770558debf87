add_executable(gradient_formats ${CMAKE_CURRENT_LIST_DIR}/gradient_formats.cc
               ${CMAKE_CURRENT_LIST_DIR}/simulated_trainers.cc)
target_link_libraries(gradient_formats PRIVATE fastserve_flags fastserve_train fastserve_cpu)
