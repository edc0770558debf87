# The plugin's host code over stand-ins for NVIDIA's runtime, driver and cuBLASLt.
if(NOT FASTSERVE_CUDA_BUILT)
  add_test(NAME gpu_plugin COMMAND ${CMAKE_COMMAND} -E echo "skipped: no nvcc here, the GPU plugin is not built")
  set_tests_properties(gpu_plugin PROPERTIES SKIP_REGULAR_EXPRESSION "skipped:")
  return()
endif()
find_package(CUDAToolkit REQUIRED)
set(stand_ins ${CMAKE_CURRENT_LIST_DIR}/stub_driver)
set(stand_in_folder ${CMAKE_CURRENT_BINARY_DIR}/gpu_stand_ins)

# stand_in(TARGET file.cc ...): a library that calls itself as NVIDIA's does.
function(stand_in target soname)
  add_library(${target} SHARED ${ARGN})
  target_link_libraries(${target} PRIVATE fastserve_flags ${CMAKE_DL_LIBS})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR})
  target_include_directories(${target} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_compile_definitions(${target} PRIVATE
    FASTSERVE_STUB_DEVICE="${PROJECT_SOURCE_DIR}/tests/data/gpu/h200.json")
  set_target_properties(${target} PROPERTIES PREFIX "" SUFFIX "" OUTPUT_NAME ${soname} NO_SONAME ON
                        LIBRARY_OUTPUT_DIRECTORY ${stand_in_folder})
  target_link_options(${target} PRIVATE LINKER:-soname,${soname})
endfunction()
stand_in(stand_in_driver libcuda.so.1 ${stand_ins}/libcuda.cc ${stand_ins}/device_description.cc)
stand_in(stand_in_cublaslt libcublasLt.so.13 ${stand_ins}/cublaslt.cc)
stand_in(stand_in_nccl libnccl.so.2 ${stand_ins}/nccl.cc)

# The plugin's objects as they are, with the stand-in where NVIDIA's runtime would be linked.
add_library(plugin_on_stand_in MODULE $<TARGET_OBJECTS:fastserve_cuda_host> $<TARGET_OBJECTS:fastserve_cuda_kernels>
  ${stand_ins}/state.cc ${stand_ins}/memory_calls.cc ${stand_ins}/launch_calls.cc ${stand_ins}/device_description.cc)
target_link_libraries(plugin_on_stand_in PRIVATE fastserve_flags fastserve_model ${CMAKE_DL_LIBS})
target_include_directories(plugin_on_stand_in SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_compile_definitions(plugin_on_stand_in PRIVATE
  FASTSERVE_STUB_DEVICE="${PROJECT_SOURCE_DIR}/tests/data/gpu/h200.json")
set_target_properties(plugin_on_stand_in PROPERTIES LINKER_LANGUAGE CXX CXX_VISIBILITY_PRESET hidden)
target_link_options(plugin_on_stand_in PRIVATE LINKER:--exclude-libs,ALL)

fastserve_test(gpu_plugin SOURCES ${CMAKE_CURRENT_LIST_DIR}/plugin_test.cc ${CMAKE_CURRENT_LIST_DIR}/waiting_test.cc
  USES gpu LIBRARIES ${CMAKE_DL_LIBS})
fastserve_test(gpu_peer_link SOURCES ${CMAKE_CURRENT_LIST_DIR}/peer_link_test.cc USES gpu LIBRARIES ${CMAKE_DL_LIBS})
foreach(test gpu_plugin_test gpu_peer_link_test)
  target_compile_definitions(${test} PRIVATE FASTSERVE_PLUGIN_ON_STAND_IN="$<TARGET_FILE:plugin_on_stand_in>"
    FASTSERVE_STAND_IN_DRIVER="$<TARGET_FILE:stand_in_driver>"
    FASTSERVE_STAND_IN_CUBLASLT="$<TARGET_FILE:stand_in_cublaslt>"
    FASTSERVE_STAND_IN_NCCL="$<TARGET_FILE:stand_in_nccl>")
  add_dependencies(${test} plugin_on_stand_in stand_in_driver stand_in_cublaslt stand_in_nccl)
endforeach()

# NCCL and the runtime both stand-ins, in one program: the test sees what each was asked for.
fastserve_test(gpu_nccl_link SOURCES ${CMAKE_CURRENT_LIST_DIR}/nccl_link_test.cc
  ${stand_ins}/nccl.cc ${stand_ins}/state.cc ${stand_ins}/memory_calls.cc ${stand_ins}/launch_calls.cc
  ${stand_ins}/device_description.cc ${PROJECT_SOURCE_DIR}/gpu/cuda/nccl_link.cc
  ${PROJECT_SOURCE_DIR}/gpu/cuda/peer_link.cc ${PROJECT_SOURCE_DIR}/gpu/cuda/device_runtime.cc
  ${PROJECT_SOURCE_DIR}/gpu/cuda/beside_stream.cc ${PROJECT_SOURCE_DIR}/gpu/cuda/event_line.cc
  ${PROJECT_SOURCE_DIR}/gpu/cuda/cuda_error.cc USES gpu)
target_include_directories(gpu_nccl_link_test SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_compile_definitions(gpu_nccl_link_test PRIVATE
  FASTSERVE_STUB_DEVICE="${PROJECT_SOURCE_DIR}/tests/data/gpu/h200.json")

fastserve_test(gpu_cublaslt_engine SOURCES ${CMAKE_CURRENT_LIST_DIR}/cublaslt_engine_test.cc ${stand_ins}/cublaslt.cc
  ${PROJECT_SOURCE_DIR}/gpu/cuda/cublaslt_engine.cc ${PROJECT_SOURCE_DIR}/gpu/cuda/cublaslt_call.cc USES gpu)
target_include_directories(gpu_cublaslt_engine_test SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})

# What a user is told, by the command and the plugin as they are built.
add_test(NAME gpu_devices COMMAND ${CMAKE_CURRENT_LIST_DIR}/devices.sh $<TARGET_FILE:fsctl> ${stand_in_folder}
         $<TARGET_FILE:fastserve_cuda>)
set_tests_properties(gpu_devices PROPERTIES TIMEOUT 300)

fastserve_test(gpu_sdpa_plan SOURCES ${CMAKE_CURRENT_LIST_DIR}/sdpa_plan_test.cc
  ${PROJECT_SOURCE_DIR}/gpu/cuda/cudnn_graph.cc ${PROJECT_SOURCE_DIR}/gpu/cuda/sdpa_graph.cc
  ${PROJECT_SOURCE_DIR}/gpu/cuda/sdpa_plan.cc ${PROJECT_SOURCE_DIR}/gpu/cuda/libraries.cc
  ${PROJECT_SOURCE_DIR}/gpu/cuda/shared_library.cc USES gpu LIBRARIES ${CMAKE_DL_LIBS})
target_include_directories(gpu_sdpa_plan_test SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_compile_definitions(gpu_sdpa_plan_test PRIVATE FASTSERVE_STAND_IN_DRIVER="$<TARGET_FILE:stand_in_driver>")
add_dependencies(gpu_sdpa_plan_test stand_in_driver)

# The op tests on the plugin's device. Says "skipped" where there is no GPU; bench/gpu_report runs it where there is.
fastserve_test(gpu_card_ops SOURCES ${CMAKE_CURRENT_LIST_DIR}/card.cc ${CMAKE_CURRENT_LIST_DIR}/train_op_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/decode_attention_op_test.cc ${CMAKE_CURRENT_LIST_DIR}/decode_op_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/fused_step_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/stored_weights_test.cc
  ${CMAKE_CURRENT_LIST_DIR}/../cpu/op_harness.cc
  USES gpu gpu_emulated transformer cpu serve)
target_compile_definitions(gpu_card_ops_test PRIVATE FASTSERVE_ON_CARD)
set_tests_properties(gpu_card_ops PROPERTIES SKIP_REGULAR_EXPRESSION "skipped:"
  ENVIRONMENT FASTSERVE_CUDA_PLUGIN=$<TARGET_FILE:fastserve_cuda>)
add_dependencies(gpu_card_ops_test fastserve_cuda)

fastserve_test(gpu_cudnn_attention SOURCES ${CMAKE_CURRENT_LIST_DIR}/cudnn_attention_test.cc
  ${stand_ins}/cudnn.cc ${stand_ins}/cudnn_graph.cc ${CMAKE_CURRENT_LIST_DIR}/../cpu/op_harness.cc
  ${PROJECT_SOURCE_DIR}/gpu/cuda/cudnn_attention.cc ${PROJECT_SOURCE_DIR}/gpu/cuda/cudnn_graph.cc
  ${PROJECT_SOURCE_DIR}/gpu/cuda/sdpa_graph.cc ${PROJECT_SOURCE_DIR}/gpu/cuda/sdpa_plan.cc
  USES gpu gpu_emulated cpu serve LABELS sanitized)
target_include_directories(gpu_cudnn_attention_test SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
