#include "model/tokenizer/leaf_table.h"

#include <fmt/format.h>

#include "model/tokenizer/unicode.h"

namespace fastserve {
namespace {

/// The character of `text` that the byte at `at` belongs to.
std::string_view character_around(std::string_view text, size_t at) {
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) at--;
  return text.substr(at, utf8_length(text[at]));
}

Error no_token_for(std::string_view character) {
  return {ErrorCode::kInvalidArgument,
          fmt::format("holds \"{}\" (U+{:04X}), which is not in the vocabulary", character,
                      static_cast<uint32_t>(utf8_decode(character.data()))),
          "text", "remove it, or use a tokenizer that covers all bytes"};
}

}  // namespace

LeafTable::LeafTable(const Vocabulary& vocabulary, UnknownPolicy policy)
    : policy_(std::move(policy)), page_of_(0x110000 / kPage, -1) {
  if (policy_.unk_token) unk_ = vocabulary.id(*policy_.unk_token).value_or(-1);
  for (int32_t id = 0; id < vocabulary.end(); id++)
    if (vocabulary.has(id) && is_one_character(vocabulary.text(id)))
      set(utf8_decode(vocabulary.text(id).data()), id);
  for (int byte = 0; byte < 256; byte++) {
    const auto at = static_cast<size_t>(byte);
    byte_tokens_[at] = vocabulary.id(fmt::format("<0x{:02X}>", byte)).value_or(-1);
    spelled_bytes_[at] = leaf(byte_to_character(static_cast<uint8_t>(byte)));
  }
}

void LeafTable::set(char32_t character, int32_t id) {
  int32_t& page = page_of_[character / kPage];
  if (page < 0) {
    page = static_cast<int32_t>(pages_.size() / kPage);
    pages_.resize(pages_.size() + kPage, -1);
  }
  pages_[static_cast<size_t>(page) * kPage + character % kPage] = id;
}

int32_t LeafTable::leaf(char32_t character) const {
  const int32_t page = page_of_[character / kPage];
  return page < 0 ? -1 : pages_[static_cast<size_t>(page) * kPage + character % kPage];
}

bool LeafTable::append_fallback(std::string_view character, std::vector<int32_t>& out) const {
  if (!policy_.byte_fallback) return false;
  const auto token = [this](char byte) { return byte_tokens_[static_cast<uint8_t>(byte)]; };
  for (const char byte : character)
    if (token(byte) < 0) return false;
  for (const char byte : character) out.push_back(token(byte));
  return true;
}

Result<bool> LeafTable::replace(std::string_view character, bool& unknown_waits,
                                std::vector<int32_t>& out) const {
  // Like the original, bytes overtake an unknown token that still waits to be fused.
  if (append_fallback(character, out)) return true;
  if (!policy_.unk_token) return false;
  if (unk_ < 0)
    return Error{
        ErrorCode::kCorrupt,
        fmt::format("the unknown token \"{}\" is not in the vocabulary", *policy_.unk_token),
        "tokenizer.json: model", "fetch or export the tokenizer again"};
  if (unknown_waits && !policy_.fuse_unk) out.push_back(unk_);
  unknown_waits = true;
  return true;
}

Status LeafTable::append_characters(std::string_view piece, std::vector<int32_t>& out) const {
  bool unknown_waits = false;
  for (size_t i = 0; i < piece.size();) {
    const size_t length = utf8_length(piece[i]);
    const int32_t id = leaf(utf8_decode(piece.data() + i));
    if (id >= 0) {
      if (unknown_waits) out.push_back(unk_);
      unknown_waits = false;
      out.push_back(id);
    } else {
      const std::string_view character = piece.substr(i, length);
      FS_ASSIGN(const bool replaced, replace(character, unknown_waits, out));
      if (!replaced) return no_token_for(character);
    }
    i += length;
  }
  if (unknown_waits) out.push_back(unk_);
  return {};
}

Status LeafTable::append_bytes(std::string_view piece, std::vector<int32_t>& out) const {
  bool unknown_waits = false;
  for (size_t i = 0; i < piece.size(); i++) {
    const int32_t id = spelled_bytes_[static_cast<uint8_t>(piece[i])];
    if (id >= 0) {
      if (unknown_waits) out.push_back(unk_);
      unknown_waits = false;
      out.push_back(id);
      continue;
    }
    FS_ASSIGN(const bool replaced, replace(spell_bytes(piece.substr(i, 1)), unknown_waits, out));
    if (!replaced) return no_token_for(character_around(piece, i));
  }
  if (unknown_waits) out.push_back(unk_);
  return {};
}

std::vector<int32_t> LeafTable::all() const {
  std::vector<int32_t> ids;
  for (const int32_t id : pages_)
    if (id >= 0) ids.push_back(id);
  for (const int32_t id : byte_tokens_)
    if (id >= 0) ids.push_back(id);
  if (unk_ >= 0) ids.push_back(unk_);
  return ids;
}

}  // namespace fastserve
