add_executable(kernels_train ${CMAKE_CURRENT_LIST_DIR}/kernels_train.cc)
target_link_libraries(kernels_train PRIVATE fastserve_flags fastserve_cpu_train benchmark::benchmark)
