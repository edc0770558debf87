add_subdirectory(${CMAKE_CURRENT_LIST_DIR}/fake_plugins ${CMAKE_CURRENT_BINARY_DIR}/fake_plugins)
fastserve_test(gpu_loader SOURCES ${CMAKE_CURRENT_LIST_DIR}/loader_test.cc USES gpu LABELS sanitized)
target_compile_definitions(gpu_loader_test PRIVATE
  FASTSERVE_FAKE_PLUGINS="${CMAKE_CURRENT_BINARY_DIR}/fake_plugins")
foreach(name other_abi other_build no_entry unresolved two_gpus no_driver)
  add_dependencies(gpu_loader_test fake_plugin_${name})
endforeach()
