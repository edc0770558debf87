fastserve_fuzz(fuzz_basp
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_basp.cc
  USES net
  CORPUS ${PROJECT_SOURCE_DIR}/tests/data/fuzz_basp)
