# fastserve_room(NAME USES other_room ... LIBRARIES foreign targets ...)
# A room is a static library fastserve_NAME of the .cc files in the calling folder. Its headers are
# included as "folder/file.h".
# USES are rooms further down the table of docs/architecture.md; LIBRARIES stay private to the room.

add_library(fastserve_flags INTERFACE)
target_compile_options(fastserve_flags INTERFACE -Wall -Wextra -Wno-unused-parameter)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
  # False alarms on std::variant members when optimising (GCC bug 105562 and its kin).
  target_compile_options(fastserve_flags INTERFACE -Wno-maybe-uninitialized)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
  # False alarms on vectors that grow (GCC bug 110498 and its kin).
  target_compile_options(fastserve_flags INTERFACE -Wno-stringop-overflow)
endif()
if(FASTSERVE_WERROR)
  target_compile_options(fastserve_flags INTERFACE -Werror)
endif()
if(FASTSERVE_SANITIZE)
  target_compile_options(fastserve_flags INTERFACE -fsanitize=${FASTSERVE_SANITIZE} -fno-omit-frame-pointer -g1)
  target_link_options(fastserve_flags INTERFACE -fsanitize=${FASTSERVE_SANITIZE})
endif()

find_program(FASTSERVE_CCACHE ccache)
if(FASTSERVE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_C_COMPILER_LAUNCHER ${FASTSERVE_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${FASTSERVE_CCACHE})
endif()

function(fastserve_room name)
  cmake_parse_arguments(ROOM "" "" "USES;LIBRARIES" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  if(NOT sources)
    add_library(fastserve_${name} INTERFACE)
    return()
  endif()
  add_library(fastserve_${name} STATIC ${sources})
  target_include_directories(fastserve_${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
  target_link_libraries(fastserve_${name} PRIVATE $<BUILD_INTERFACE:fastserve_flags> ${ROOM_LIBRARIES})
  foreach(other ${ROOM_USES})
    target_link_libraries(fastserve_${name} PUBLIC fastserve_${other})
  endforeach()
endfunction()

# fastserve_test(NAME SOURCES ... USES room ... [LABELS sanitized threaded]): one doctest program, one
# ctest entry. `sanitized` tests run under ASan+UBSan and `threaded` ones under TSan in ./check.
add_custom_target(sanitized_tests)
add_custom_target(threaded_tests)
function(fastserve_test name)
  cmake_parse_arguments(TEST "" "" "SOURCES;USES;LIBRARIES;LABELS" ${ARGN})
  add_executable(${name}_test ${TEST_SOURCES})
  target_link_libraries(${name}_test PRIVATE fastserve_flags fastserve_test_main ${TEST_LIBRARIES})
  foreach(other ${TEST_USES})
    target_link_libraries(${name}_test PRIVATE fastserve_${other})
  endforeach()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${name}_test PRIVATE -Wno-restrict)  # false alarms on "text" + string: GCC bug 105651
  endif()
  target_compile_definitions(${name}_test PRIVATE FASTSERVE_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  add_test(NAME ${name} COMMAND ${name}_test)
  set(seconds 600)
  if(FASTSERVE_SANITIZE)
    set(seconds 1800)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${seconds} LABELS "${TEST_LABELS}")
  foreach(label ${TEST_LABELS})
    add_dependencies(${label}_tests ${name}_test)
  endforeach()
endfunction()

# fastserve_order_caf(TARGET): lets ThreadSanitizer follow the messages of a test's actors.
function(fastserve_order_caf target)
  if(NOT FASTSERVE_SANITIZE STREQUAL "thread")
    return()
  endif()
  target_sources(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests/actors/caf_under_tsan.cc)
  target_link_libraries(${target} PRIVATE ${CAF_CORE_LIBRARY} ${CMAKE_DL_LIBS})
  set_target_properties(${target} PROPERTIES ENABLE_EXPORTS ON)  # found before the library's own
endfunction()
