set(malformed ${PROJECT_SOURCE_DIR}/tests/data/reference/malformed)
fastserve_fuzz(fuzz_safetensors
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_safetensors.cc
  USES model
  CORPUS ${malformed}/safetensors)
fastserve_fuzz(fuzz_config
  SOURCES ${FASTSERVE_FUZZ_FOLDER}/fuzz_config.cc
  USES model
  CORPUS ${malformed}/config/ok_control ${malformed}/config/unknown_model_type
         ${PROJECT_SOURCE_DIR}/tests/data/reference/models)
