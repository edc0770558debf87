// From the characters or bytes of a piece to the symbols that merging starts from.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/tokenizer/vocabulary.h"

namespace fastserve {

/// What becomes of a character that is no token.
struct UnknownPolicy {
  bool byte_fallback = false;  ///< its UTF-8 bytes as <0x00>..<0xFF>, when all of them are tokens
  bool fuse_unk = false;       ///< one unknown token for several unknown characters in a row
  std::optional<std::string> unk_token;
};

/// Threads: const calls from any thread.
class LeafTable {
 public:
  LeafTable(const Vocabulary& vocabulary, UnknownPolicy policy);

  // Both append to `out`. kInvalidArgument: a character with neither token, bytes nor unknown
  // token.
  Status append_characters(std::string_view piece, std::vector<int32_t>& out) const;
  /// Each byte counts as its character in GPT-2's alphabet.
  Status append_bytes(std::string_view piece, std::vector<int32_t>& out) const;

  /// Every id that can come out.
  std::vector<int32_t> all() const;

 private:
  static constexpr size_t kPage = 256;
  void set(char32_t character, int32_t id);
  int32_t leaf(char32_t character) const;
  /// Handles a character that is no token; false: nothing can stand for it.
  Result<bool> replace(std::string_view character, bool& unknown_waits,
                       std::vector<int32_t>& out) const;
  bool append_fallback(std::string_view character, std::vector<int32_t>& out) const;

  UnknownPolicy policy_;
  int32_t unk_ = -1;
  std::array<int32_t, 256> byte_tokens_;    ///< <0x00>..<0xFF>; -1: absent
  std::array<int32_t, 256> spelled_bytes_;  ///< the token of each byte's character; -1: absent
  std::vector<int32_t> page_of_;            ///< by character / kPage; -1: no leaf in it
  std::vector<int32_t> pages_;
};

}  // namespace fastserve
