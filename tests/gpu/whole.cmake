# Models on the emulated GPU, from end to end.
fastserve_test(gpu_models SOURCES ${CMAKE_CURRENT_LIST_DIR}/models_test.cc USES gpu_emulated compress transformer cpu)
