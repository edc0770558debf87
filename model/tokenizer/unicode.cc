#include "model/tokenizer/unicode.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace fastserve {
namespace {

bool is_ascii_word(const char* at) {
  uint64_t word;
  std::memcpy(&word, at, sizeof word);
  return (word & 0x8080808080808080) == 0;
}

struct Sequence {
  int continuation;   // bytes after the first; -1: no character starts so
  uint8_t low, high;  // range of the second byte
};

Sequence sequence_of(uint8_t lead) {
  if (lead < 0x80) return {0, 0, 0};
  if (lead < 0xC2 || lead > 0xF4) return {-1, 0, 0};
  if (lead < 0xE0) return {1, 0x80, 0xBF};
  if (lead == 0xE0) return {2, 0xA0, 0xBF};
  if (lead == 0xED) return {2, 0x80, 0x9F};
  if (lead < 0xF0) return {2, 0x80, 0xBF};
  if (lead == 0xF0) return {3, 0x90, 0xBF};
  if (lead == 0xF4) return {3, 0x80, 0x8F};
  return {3, 0x80, 0xBF};
}

/// Bytes that print as themselves in GPT-2's alphabet; the others follow from U+0100 in order.
constexpr bool prints_as_itself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr int kAlphabetEnd = 0x100 + 68;

struct ByteAlphabet {
  std::array<uint16_t, 256> character{};
  std::array<int16_t, kAlphabetEnd> byte{};
};

constexpr ByteAlphabet make_alphabet() {
  ByteAlphabet alphabet;
  for (auto& byte : alphabet.byte) byte = -1;
  int next = 0x100;
  for (int byte = 0; byte < 256; byte++) {
    const int character = prints_as_itself(byte) ? byte : next++;
    alphabet.character[static_cast<size_t>(byte)] = static_cast<uint16_t>(character);
    alphabet.byte[static_cast<size_t>(character)] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr ByteAlphabet kAlphabet = make_alphabet();

int combining_class(utf8proc_int32_t character) {
  return utf8proc_get_property(character)->combining_class;
}

/// Puts each run of combining marks into canonical order, marks of one class as they came.
void order_marks(std::vector<utf8proc_int32_t>& text) {
  for (size_t i = 0; i < text.size();) {
    if (combining_class(text[i]) == 0) {
      i++;
      continue;
    }
    size_t end = i + 1;
    while (end < text.size() && combining_class(text[end]) != 0) end++;
    std::stable_sort(text.begin() + static_cast<std::ptrdiff_t>(i),
                     text.begin() + static_cast<std::ptrdiff_t>(end),
                     [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    i = end;
  }
}

/// Characters (first to last) that Unicode 9 did not have, or not with their present combining
/// class and decomposition. The tokenizers library normalises by Unicode 9's tables: to it they are
/// letters that nothing changes.
struct Range {
  char32_t first, last;
};
constexpr Range kAfterUnicode9[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},
    {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},
    {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0x32FF, 0x32FF},   {0xA7F2, 0xA7F4},
    {0xA82C, 0xA82C},   {0xAB69, 0xAB69},   {0x10781, 0x107BA}, {0x10D24, 0x10D27},
    {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85},
    {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11930, 0x11930}, {0x11935, 0x11935}, {0x11938, 0x11938}, {0x1193D, 0x1193E},
    {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47},
    {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97},
    {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E030, 0x1E06D}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
    {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9}};

bool is_after_unicode_9(char32_t c) {
  const auto* const range = std::lower_bound(
      std::begin(kAfterUnicode9), std::end(kAfterUnicode9), c,
      [](const Range& candidate, char32_t value) { return candidate.last < value; });
  return range != std::end(kAfterUnicode9) && c >= range->first;
}

/// Normalises what was put in and appends it to `out`.
class NormalRun {
 public:
  NormalRun(NormalForm form, std::string& out)
      : composes_(form == NormalForm::kC || form == NormalForm::kKC),
        flags_(UTF8PROC_DECOMPOSE |
               (form == NormalForm::kKC || form == NormalForm::kKD ? UTF8PROC_COMPAT : 0)),
        out_(out) {}

  void put(char32_t character) {
    utf8proc_int32_t parts[32];  // the longest compatibility decomposition has 18
    int boundary = UTF8PROC_BOUNDCLASS_START;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(character), parts, 32,
                                               static_cast<utf8proc_option_t>(flags_), &boundary);
    FS_CHECK(count >= 0 && count <= 32);
    characters_.insert(characters_.end(), parts, parts + count);
  }

  void flush() {
    order_marks(characters_);
    auto length = static_cast<utf8proc_ssize_t>(characters_.size());
    if (composes_)
      length = utf8proc_normalize_utf32(
          characters_.data(), length,
          static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    FS_CHECK(length >= 0);
    for (utf8proc_ssize_t i = 0; i < length; i++)
      append_utf8(static_cast<char32_t>(characters_[static_cast<size_t>(i)]), out_);
    characters_.clear();
  }

 private:
  bool composes_;
  int flags_;
  std::string& out_;
  std::vector<utf8proc_int32_t> characters_;
};

/// No character below this one changes under the form or combines with one before it.
char32_t first_affected(NormalForm form) {
  switch (form) {
    case NormalForm::kC:
      return 0x300;
    case NormalForm::kD:
      return 0xC0;
    default:
      return 0xA0;
  }
}

bool is_unaffected(std::string_view text, NormalForm form) {
  const char32_t limit = first_affected(form);
  for (size_t i = 0; i < text.size();) {
    if (i + 8 <= text.size() && is_ascii_word(text.data() + i)) {
      i += 8;
      continue;
    }
    if (utf8_decode(text.data() + i) >= limit) return false;
    i += utf8_length(text[i]);
  }
  return true;
}

}  // namespace

std::optional<size_t> find_invalid_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    if (i + 8 <= text.size() && is_ascii_word(text.data() + i)) {
      i += 8;
      continue;
    }
    Sequence sequence = sequence_of(static_cast<uint8_t>(text[i]));
    if (sequence.continuation < 0) return i;
    for (int k = 1; k <= sequence.continuation; k++) {
      if (i + static_cast<size_t>(k) >= text.size()) return i;
      const auto byte = static_cast<uint8_t>(text[i + static_cast<size_t>(k)]);
      if (byte < sequence.low || byte > sequence.high) return i;
      sequence.low = 0x80, sequence.high = 0xBF;
    }
    i += static_cast<size_t>(sequence.continuation) + 1;
  }
  return std::nullopt;
}

Status require_utf8(std::string_view text, std::string_view where) {
  const std::optional<size_t> bad = find_invalid_utf8(text);
  if (!bad) return {};
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("is not UTF-8: byte {:#04x} at offset {}",
                           static_cast<uint8_t>(text[*bad]), *bad),
               std::string(where), "convert it to UTF-8"};
}

void append_utf8(char32_t c, std::string& out) {
  const auto put = [&out](char32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6), put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18), put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
  }
}

void LossyUtf8::start(uint8_t byte, std::string& out) {
  const Sequence sequence = sequence_of(byte);
  if (sequence.continuation == 0) {
    out += static_cast<char>(byte);
  } else if (sequence.continuation < 0) {
    append_utf8(kReplacementCharacter, out);
  } else {
    pending_[0] = static_cast<char>(byte);
    held_ = 1, wanted_ = sequence.continuation;
    low_ = sequence.low, high_ = sequence.high;
  }
}

void LossyUtf8::push_byte(uint8_t byte, std::string& out) {
  if (wanted_ == 0) return start(byte, out);
  if (byte < low_ || byte > high_) {
    finish(out);
    return start(byte, out);
  }
  pending_[static_cast<size_t>(held_++)] = static_cast<char>(byte);
  low_ = 0x80, high_ = 0xBF;
  if (--wanted_ > 0) return;
  out.append(pending_.data(), static_cast<size_t>(held_));
  held_ = 0;
}

void LossyUtf8::push(std::string_view bytes, std::string& out) {
  for (const char byte : bytes) push_byte(static_cast<uint8_t>(byte), out);
}

void LossyUtf8::finish(std::string& out) {
  if (wanted_ > 0) append_utf8(kReplacementCharacter, out);
  held_ = wanted_ = 0;
}

char32_t byte_to_character(uint8_t byte) { return kAlphabet.character[byte]; }

int character_to_byte(char32_t character) {
  return character < kAlphabetEnd ? kAlphabet.byte[character] : -1;
}

std::string spell_bytes(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char byte : bytes) append_utf8(byte_to_character(static_cast<uint8_t>(byte)), out);
  return out;
}

std::optional<std::string> unspell_bytes(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); i += utf8_length(text[i])) {
    const int byte = character_to_byte(utf8_decode(text.data() + i));
    if (byte < 0) return std::nullopt;
    out += static_cast<char>(byte);
  }
  return out;
}

std::string normalize_unicode(std::string_view text, NormalForm form) {
  if (is_unaffected(text, form)) return std::string(text);
  std::string out;
  out.reserve(text.size());
  NormalRun run(form, out);
  for (size_t i = 0; i < text.size(); i += utf8_length(text[i])) {
    const char32_t character = utf8_decode(text.data() + i);
    if (!is_after_unicode_9(character)) {
      run.put(character);
      continue;
    }
    run.flush();
    append_utf8(character, out);
  }
  run.flush();
  return out;
}

namespace {

/// Capitals of Unicode 16 and 17, which the tokenizers library knows and utf8proc may not yet.
char32_t lowercase_of_late_capital(char32_t c) {
  if (c >= 0x10D50 && c <= 0x10D65) return c + 0x20;  // Garay
  if (c >= 0x16EA0 && c <= 0x16EB8) return c + 0x1B;  // Beria Erfe
  if (c == 0xA7CB) return 0x264;
  if (c == 0xA7DC) return 0x19B;
  for (const char32_t even : {0x1C89, 0xA7CC, 0xA7CE, 0xA7D2, 0xA7D4, 0xA7DA})
    if (c == even) return c + 1;
  return c;
}

char32_t lowercase_of(char32_t c) {
  const auto known = static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
  return known == c ? lowercase_of_late_capital(c) : known;
}

}  // namespace

std::string lowercase_unicode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); i += utf8_length(text[i])) {
    const char32_t character = utf8_decode(text.data() + i);
    if (character == 0x130)  // the only one that becomes two: i and a dot above
      out += "i\u0307";
    else
      append_utf8(lowercase_of(character), out);
  }
  return out;
}

std::string uppercase_unicode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); i += utf8_length(text[i])) {
    const char32_t character = utf8_decode(text.data() + i);
    if (character == 0xDF)
      out += "SS";
    else
      append_utf8(static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(character))),
                  out);
  }
  return out;
}

}  // namespace fastserve
