fastserve_fuzz(fuzz_jinja
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_jinja.cc
  USES serve
  CORPUS ${PROJECT_SOURCE_DIR}/tests/data/reference/chat_templates)
