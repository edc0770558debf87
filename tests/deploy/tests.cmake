# What deploy/ holds, checked by the tools that are here.
foreach(script units slurm kubernetes)
  add_test(NAME deploy_${script}
    COMMAND ${CMAKE_CURRENT_LIST_DIR}/${script}.sh $<TARGET_FILE:fsctl> ${PROJECT_SOURCE_DIR})
  set_tests_properties(deploy_${script} PROPERTIES TIMEOUT 120)
endforeach()
