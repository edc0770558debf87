# The command as a user runs it: real processes, loopback only, a folder of its own.
foreach(script setup words terminal main_job models_and_compress interruptions bad_input serving parity_verdicts)
  add_test(NAME cli_${script}
    COMMAND ${CMAKE_CURRENT_LIST_DIR}/${script}.sh $<TARGET_FILE:fsctl> ${PROJECT_SOURCE_DIR})
  set_tests_properties(cli_${script} PROPERTIES TIMEOUT 900)
endforeach()
add_test(NAME cli_parity COMMAND fsctl parity ${PROJECT_SOURCE_DIR}/tests/data/reference)
