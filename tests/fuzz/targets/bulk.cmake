fastserve_fuzz(fuzz_bulk
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_bulk.cc
  USES net
  CORPUS ${PROJECT_SOURCE_DIR}/tests/data/fuzz_bulk)
