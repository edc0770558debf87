fastserve_fuzz(fuzz_pieces
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_pieces.cc
  USES train
  CORPUS ${PROJECT_SOURCE_DIR}/tests/data/fuzz_pieces)
