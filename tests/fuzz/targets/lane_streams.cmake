fastserve_fuzz(fuzz_lane_streams
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_lane_streams.cc
  USES net
  CORPUS ${PROJECT_SOURCE_DIR}/tests/data/fuzz_lane_streams
  MUTATIONS 5000)
