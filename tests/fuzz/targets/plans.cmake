fastserve_fuzz(fuzz_plans SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_plans.cc USES gpu
  CORPUS ${PROJECT_SOURCE_DIR}/tests/data/fuzz_plans)
