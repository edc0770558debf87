fastserve_fuzz(fuzz_cluster
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_cluster.cc
  USES rpc
  CORPUS ${PROJECT_SOURCE_DIR}/tests/data/fuzz_cluster
  MUTATIONS 4000)
