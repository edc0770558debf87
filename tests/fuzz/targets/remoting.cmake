fastserve_fuzz(fuzz_remoting
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_remoting.cc
  USES actors net
  CORPUS ${PROJECT_SOURCE_DIR}/tests/data/fuzz_remoting
  MUTATIONS 3000)
target_link_libraries(fuzz_remoting PRIVATE ${CAF_IO_LIBRARY} ${CAF_CORE_LIBRARY})
