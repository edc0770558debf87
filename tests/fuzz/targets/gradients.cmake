fastserve_fuzz(fuzz_gradients
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_gradients.cc
  USES train
  CORPUS ${PROJECT_SOURCE_DIR}/tests/data/fuzz_gradients)
