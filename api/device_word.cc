#include "api/device_word.h"

#include <algorithm>
#include <charconv>

namespace fastserve {
namespace {

/// A number of digits alone.
template <class Number>
std::optional<Number> number(std::string_view text) {
  Number value = 0;
  const char* const end = text.data() + text.size();
  if (text.empty() || text.front() == '-') return std::nullopt;
  const auto read = std::from_chars(text.data(), end, value);
  if (read.ec != std::errc() || read.ptr != end) return std::nullopt;
  return value;
}

/// What follows `kind` and a colon; empty behind the kind alone; nothing for another kind.
std::optional<std::string_view> behind(std::string_view word, std::string_view kind) {
  if (!word.starts_with(kind)) return std::nullopt;
  word.remove_prefix(kind.size());
  if (word.empty()) return word;
  if (word.front() != ':' || word.size() == 1) return std::nullopt;
  return word.substr(1);
}

}  // namespace

std::optional<CudaWord> parse_cuda_word(std::string_view word) {
  constexpr size_t kMost = 64;
  const auto rest = behind(word, "cuda");
  if (!rest) return std::nullopt;
  CudaWord cuda;
  cuda.all = *rest == "all";
  if (rest->empty() || cuda.all) return cuda;
  for (std::string_view left = *rest;;) {
    const size_t comma = std::min(left.find(','), left.size());
    const auto index = number<int>(left.substr(0, comma));
    const auto& named = cuda.indices;
    if (!index || named.size() == kMost ||
        std::find(named.begin(), named.end(), *index) != named.end())
      return std::nullopt;
    cuda.indices.push_back(*index);
    if (comma == left.size()) return cuda;
    left.remove_prefix(comma + 1);
  }
}

std::optional<EmulatedWord> parse_emulated_word(std::string_view word) {
  constexpr int kMostCards = 8;
  const auto rest = behind(word, "emulated");
  if (!rest) return std::nullopt;
  EmulatedWord emulated;
  if (rest->empty()) return emulated;
  std::string_view bytes = *rest;
  if (const size_t x = rest->find('x'); x != std::string_view::npos) {
    const auto cards = number<int>(rest->substr(0, x));
    if (!cards || *cards < 1 || *cards > kMostCards) return std::nullopt;
    emulated.cards = *cards;
    bytes = rest->substr(x + 1);
    if (bytes.empty()) return emulated;
  }
  const auto memory = number<uint64_t>(bytes);
  if (!memory || *memory == 0) return std::nullopt;
  emulated.bytes = *memory;
  return emulated;
}

}  // namespace fastserve
