fastserve_fuzz(fuzz_tokenizer
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_tokenizer.cc
  USES tokenizer
  CORPUS ${PROJECT_SOURCE_DIR}/tests/data/tokenizers/tiny
         ${PROJECT_SOURCE_DIR}/tests/data/reference/malformed/tokenizer)
