// A plugin of a later interface, whose entry may hold anything behind its first field.
#include <cstdint>

extern "C" {
extern const uint32_t fastserve_gpu_plugin[4];
const uint32_t fastserve_gpu_plugin[4] = {7, 0, 1, 1};
}
