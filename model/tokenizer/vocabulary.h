// Tokens and their ids, as the "model" of tokenizer.json lists them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "model/tokenizer/fields.h"

namespace fastserve {

/// Threads: const calls from any thread.
class Vocabulary {
 public:
  /// `tokens`: an object from token to id. kCorrupt: an id that is negative, taken twice or far
  /// beyond the number of tokens.
  static Result<Vocabulary> parse(const Section& tokens);
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  std::optional<int32_t> id(std::string_view token) const;
  bool has(int32_t id) const {
    return id >= 0 && id < end() && present_[static_cast<size_t>(id)] != 0;
  }
  /// Requires has(id).
  const std::string& text(int32_t id) const { return texts_[static_cast<size_t>(id)]; }
  int32_t end() const { return static_cast<int32_t>(texts_.size()); }  ///< the largest id + 1
  size_t size() const { return ids_.size(); }

 private:
  Vocabulary() = default;
  std::vector<std::string> texts_;
  std::vector<uint8_t> present_;
  std::unordered_map<std::string_view, int32_t> ids_;  ///< views of texts_
};

}  // namespace fastserve
