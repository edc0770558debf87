fastserve_fuzz(fuzz_models
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_models.cc
  USES api
  CORPUS ${PROJECT_SOURCE_DIR}/tests/data/fuzz_models)
