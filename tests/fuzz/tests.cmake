# Fuzz targets: each is a LLVMFuzzerTestOneInput in a file of its own, listed in its own
# targets/*.cmake. With clang they are libFuzzer programs; with other compilers standalone_main.cc
# replays the corpus and a fixed number of seeded mutations of it. Either way ctest runs each briefly.
#
# A long run: cmake -B build/fuzz -DCMAKE_CXX_COMPILER=clang++
#   "-DFASTSERVE_SANITIZE=fuzzer-no-link,address,undefined" && build/fuzz/tests/fuzz_config CORPUS_DIR
set(FASTSERVE_FUZZ_FOLDER ${CMAKE_CURRENT_LIST_DIR})

# fastserve_fuzz(NAME SOURCES ... USES room ... CORPUS files or folders ... [MUTATIONS n])
function(fastserve_fuzz name)
  cmake_parse_arguments(FUZZ "" "MUTATIONS" "SOURCES;USES;CORPUS" ${ARGN})
  if(NOT FUZZ_MUTATIONS)
    set(FUZZ_MUTATIONS 20000)
  endif()
  add_executable(${name} ${FUZZ_SOURCES})
  target_link_libraries(${name} PRIVATE fastserve_flags)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  foreach(room ${FUZZ_USES})
    target_link_libraries(${name} PRIVATE fastserve_${room})
  endforeach()
  if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    # libFuzzer adds what it finds to its first folder: give it one of its own.
    set(found ${CMAKE_CURRENT_BINARY_DIR}/${name}_found)
    file(MAKE_DIRECTORY ${found})
    add_test(NAME ${name} COMMAND ${name} -seed=1 -runs=${FUZZ_MUTATIONS} ${found} ${FUZZ_CORPUS})
  else()
    target_sources(${name} PRIVATE ${FASTSERVE_FUZZ_FOLDER}/standalone_main.cc)
    add_test(NAME ${name} COMMAND ${name} ${FUZZ_MUTATIONS} ${FUZZ_CORPUS})
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT 600 LABELS fuzz)
endfunction()

file(GLOB fuzz_targets CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/targets/*.cmake)
foreach(list ${fuzz_targets})
  include(${list})
endforeach()
