fastserve_test(serve
  SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/chat_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/jinja_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/engine_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/engine_drawing_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/engine_loading_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/engine_turns_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/kv_pages_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/memory_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/model_turns_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/kv_parking_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/real_model_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/sampler_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/scheduler_test.cc
  USES serve cpu LABELS sanitized)
