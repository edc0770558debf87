file(GLOB rpc_corpus CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/data/fuzz_rpc/*)
fastserve_fuzz(fuzz_rpc
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_rpc.cc
  USES rpc
  CORPUS ${rpc_corpus}
  MUTATIONS 4000)
