fastserve_test(gpu_plan_cache SOURCES ${CMAKE_CURRENT_LIST_DIR}/plan_cache_test.cc USES gpu LABELS sanitized)
