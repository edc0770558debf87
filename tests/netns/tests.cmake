# Real processes in networks, with disks and clocks that misbehave. Skipped with a word where the machine does
# not allow it. Most of the time is waiting for silence to be noticed, so several cases run at once.
add_executable(netns_wire ${CMAKE_CURRENT_LIST_DIR}/wire.cc)
target_link_libraries(netns_wire PRIVATE fastserve_flags)
add_library(netns_machine MODULE ${CMAKE_CURRENT_LIST_DIR}/machine.cc)
target_link_libraries(netns_machine PRIVATE fastserve_flags ${CMAKE_DL_LIBS})

function(trouble_test name)
  add_test(NAME trouble_${name}
    COMMAND ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/trouble.sh $<TARGET_FILE:fsctl>
            ${PROJECT_SOURCE_DIR}/data/tinyshakespeare ${ARGN})
  set(tools FASTSERVE_WIRE=$<TARGET_FILE:netns_wire> FASTSERVE_MACHINE=$<TARGET_FILE:netns_machine>)
  set_tests_properties(trouble_${name} PROPERTIES PROCESSORS 2 RESOURCE_LOCK networks TIMEOUT 300
                       SKIP_RETURN_CODE 77 ENVIRONMENT "${tools}")
endfunction()
trouble_test(network slow capped worker minority apart stopped frozen)
trouble_test(machine full slow-disk clock)
