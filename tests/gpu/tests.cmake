# Each part of the room has a list of its own.
file(GLOB gpu_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.cmake)
list(FILTER gpu_tests EXCLUDE REGEX "/tests\\.cmake$")
foreach(list ${gpu_tests})
  include(${list})
endforeach()
