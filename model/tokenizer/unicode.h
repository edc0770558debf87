// UTF-8, the byte alphabet of GPT-2 and Unicode normal forms: what the rest of this room is made
// of.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace fastserve {

inline constexpr char32_t kReplacementCharacter = 0xFFFD;

/// Offset of the first byte that does not belong to well-formed UTF-8; none when all of it does.
std::optional<size_t> find_invalid_utf8(std::string_view text);

/// kInvalidArgument with the byte offset when `text` is not UTF-8.
Status require_utf8(std::string_view text, std::string_view where);

/// Bytes of the character that starts with `lead`, in well-formed UTF-8.
inline size_t utf8_length(char lead) {
  const auto byte = static_cast<uint8_t>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

/// The character at `at` of well-formed UTF-8.
inline char32_t utf8_decode(const char* at) {
  const auto byte = [at](int i) { return static_cast<char32_t>(static_cast<uint8_t>(at[i])); };
  switch (utf8_length(*at)) {
    case 1:
      return byte(0);
    case 2:
      return (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F);
    case 3:
      return (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    default:
      return (byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 |
             (byte(3) & 0x3F);
  }
}

void append_utf8(char32_t character, std::string& out);

/// Is `text` exactly one character?
inline bool is_one_character(std::string_view text) {
  return !text.empty() && utf8_length(text[0]) == text.size();
}

/// Decodes bytes that arrive in pieces; each maximal part of a broken character becomes one U+FFFD
/// (Unicode 15, section 3.9, "U+FFFD substitution of maximal subparts").
class LossyUtf8 {
 public:
  /// Appends to `out` what no later byte can change.
  void push(std::string_view bytes, std::string& out);
  void finish(std::string& out);

 private:
  void push_byte(uint8_t byte, std::string& out);
  void start(uint8_t byte, std::string& out);

  std::array<char, 4> pending_{};
  int held_ = 0;                      ///< bytes in pending_
  int wanted_ = 0;                    ///< continuation bytes still missing
  uint8_t low_ = 0x80, high_ = 0xBF;  ///< what the next one may be
};

/// The printable character by which GPT-2's vocabulary spells a byte.
char32_t byte_to_character(uint8_t byte);
/// The byte that a character of that alphabet stands for; -1 for other characters.
int character_to_byte(char32_t character);
/// `bytes` spelled in that alphabet.
std::string spell_bytes(std::string_view bytes);
/// The bytes that a text in that alphabet stands for; none when it holds another character.
std::optional<std::string> unspell_bytes(std::string_view text);

enum class NormalForm { kC, kD, kKC, kKD };

/// A normal form of well-formed UTF-8, in time linear in it but for a logarithm in the longest run
/// of combining marks.
std::string normalize_unicode(std::string_view text, NormalForm form);

/// Well-formed UTF-8 in small letters, each character by itself (no final sigma).
std::string lowercase_unicode(std::string_view text);
/// Well-formed UTF-8 in capitals; a sharp s becomes two.
std::string uppercase_unicode(std::string_view text);

}  // namespace fastserve
