// The word behind --device, taken apart.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fastserve {

/// Which of a machine's GPUs "cuda", "cuda:all", "cuda:2" or "cuda:0,2" are.
struct CudaWord {
  bool all = false;          ///< all that are fit and like the first
  std::vector<int> indices;  ///< as they were named; none, and not all: the first that is fit
};
/// Nothing for another word; for one that names a GPU twice, or more than 64.
std::optional<CudaWord> parse_cuda_word(std::string_view word);

/// "emulated", "emulated:BYTES", "emulated:2x", "emulated:2xBYTES".
struct EmulatedWord {
  int cards = 1;       ///< 1 to 8
  uint64_t bytes = 0;  ///< of each; 0: as the emulator likes
};
/// Nothing for another word.
std::optional<EmulatedWord> parse_emulated_word(std::string_view word);

}  // namespace fastserve
