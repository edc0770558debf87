fastserve_fuzz(fuzz_join
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_join.cc
  USES net
  CORPUS ${PROJECT_SOURCE_DIR}/tests/data/fuzz_join)
