# Models and jobs on the emulated GPU, from end to end.
fastserve_test(gpu_models SOURCES ${CMAKE_CURRENT_LIST_DIR}/models_test.cc USES gpu_emulated compress transformer cpu)
fastserve_test(gpu_training SOURCES ${CMAKE_CURRENT_LIST_DIR}/training_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/resident_test.cc ${CMAKE_CURRENT_LIST_DIR}/cards_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/ring_test.cc
  USES gpu_emulated actors cpu_reference LABELS sanitized)
fastserve_test(gpu_serving SOURCES ${CMAKE_CURRENT_LIST_DIR}/serving_test.cc
          ${CMAKE_CURRENT_LIST_DIR}/loading_test.cc ${CMAKE_CURRENT_LIST_DIR}/turns_test.cc
  USES gpu_emulated actors LABELS sanitized)
fastserve_order_caf(gpu_training_test)
fastserve_order_caf(gpu_serving_test)
target_include_directories(gpu_training_test PRIVATE ${CMAKE_CURRENT_LIST_DIR}/.. ${CMAKE_CURRENT_LIST_DIR}/../actors)
if(FASTSERVE_EMULATED_DEVICE)
  add_test(NAME cli_device COMMAND ${CMAKE_CURRENT_LIST_DIR}/../cli/device.sh $<TARGET_FILE:fsctl> ${PROJECT_SOURCE_DIR})
  set_tests_properties(cli_device PROPERTIES TIMEOUT 600)
endif()
