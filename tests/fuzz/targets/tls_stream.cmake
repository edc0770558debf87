fastserve_fuzz(fuzz_tls_stream
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_tls_stream.cc
  USES net
  CORPUS ${PROJECT_SOURCE_DIR}/tests/data/fuzz_tls_stream)
