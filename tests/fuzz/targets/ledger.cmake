fastserve_fuzz(fuzz_ledger
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_ledger.cc
  USES train
  CORPUS ${PROJECT_SOURCE_DIR}/tests/data/fuzz_ledger)
