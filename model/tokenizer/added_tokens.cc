#include "model/tokenizer/added_tokens.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/tokenizer/character_class.h"

namespace fastserve {

int32_t TextFinder::child(int32_t node, char byte) const {
  for (const auto& [next_byte, next] : nodes_[static_cast<size_t>(node)].next)
    if (next_byte == byte) return next;
  return -1;
}

void TextFinder::add(std::string_view text, size_t index) {
  starts_[static_cast<uint8_t>(text[0])] = 1;
  int32_t node = 0;
  for (const char byte : text) {
    int32_t next = child(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_[static_cast<size_t>(node)].next.emplace_back(byte, next);
      nodes_.emplace_back();
    }
    node = next;
  }
  nodes_[static_cast<size_t>(node)].index = static_cast<int64_t>(index);
}

std::optional<TextFinder::Hit> TextFinder::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); begin++) {
    if (starts_[static_cast<uint8_t>(text[begin])] == 0) continue;
    std::optional<Hit> longest;
    int32_t node = 0;
    for (size_t at = begin; at < text.size(); at++) {
      node = child(node, text[at]);
      if (node < 0) break;
      const int64_t index = nodes_[static_cast<size_t>(node)].index;
      if (index >= 0) longest = {begin, at + 1, static_cast<size_t>(index)};
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

Result<AddedTokens> AddedTokens::parse(const Json* list, const std::string& where,
                                       const Vocabulary& vocabulary, const Normalizer& normalizer) {
  AddedTokens added;
  if (list == nullptr) return added;
  if (!list->is_array()) return Section{*list, where}.corrupt("is not a list");
  auto next_id = static_cast<int32_t>(vocabulary.size());
  for (const Json& item : list->as_array()) {
    if (!item.is_object()) return Section{item, where}.corrupt("holds something that is no object");
    FS_TRY(added.add({item, where}, vocabulary, normalizer, next_id));
  }
  added.index();
  return added;
}

Status AddedTokens::add(const Section& section, const Vocabulary& vocabulary,
                        const Normalizer& normalizer, int32_t& next_id) {
  // The id that counts is the vocabulary's, or the next; but a file that gives none is damaged.
  const Json* given = section.json.find_set("id");
  if (given == nullptr || !given->is_int() || given->as_int() < 0 || given->as_int() > UINT32_MAX)
    return section.corrupt("holds a token whose \"id\" is not a token id");
  AddedToken token;
  FS_ASSIGN(token.content, section.required_text("content"));
  FS_ASSIGN(token.special, section.flag("special", false));
  FS_ASSIGN(token.normalized, section.flag("normalized", !token.special));
  FS_ASSIGN(token.single_word, section.flag("single_word", false));
  FS_ASSIGN(token.lstrip, section.flag("lstrip", false));
  FS_ASSIGN(token.rstrip, section.flag("rstrip", false));
  if (token.content.empty()) return {};
  token.normalized_content = token.content;
  if (token.normalized) {
    FS_ASSIGN(token.normalized_content, normalizer.apply(token.content));
    if (token.normalized_content.empty()) token.normalized_content = token.content;
  }
  const auto known = by_content_.find(token.content);
  if (known != by_content_.end())
    token.id = tokens_[known->second].id;
  else
    token.id = vocabulary.id(token.content).value_or(-1);
  if (token.id < 0) token.id = next_id++;
  if (token.special) special_.insert(token.content);
  end_ = std::max(end_, token.id + 1);

  const auto same_id = by_id_.find(token.id);
  const size_t at = same_id == by_id_.end() ? tokens_.size() : same_id->second;
  by_id_[token.id] = at;
  by_content_[token.content] = at;
  if (at == tokens_.size()) tokens_.emplace_back();
  tokens_[at] = std::move(token);
  return {};
}

void AddedTokens::index() {
  for (size_t i = 0; i < tokens_.size(); i++) {
    const AddedToken& token = tokens_[i];
    if (token.normalized)
      normalized_.add(token.normalized_content, i);
    else
      raw_.add(token.content, i);
  }
}

std::vector<AddedTokens::Span> AddedTokens::split(std::string_view text, bool normalized,
                                                  bool parse_special) const {
  const TextFinder& finder = normalized ? normalized_ : raw_;
  std::vector<Span> spans;
  size_t done = 0;
  if (!finder.empty()) {
    size_t from = 0;
    while (const auto hit = finder.find(text, from)) {
      from = hit->end;
      const AddedToken& token = tokens_[hit->index];
      if (!parse_special && special_.contains(token.content)) continue;
      size_t begin = hit->begin, end = hit->end;
      if (token.single_word) {
        const bool starts = begin == 0 || !is_word(last_character(text.substr(0, begin)));
        const bool ends = end == text.size() || !is_word(first_character(text.substr(end)));
        if (!starts || !ends) continue;
      }
      // Spaces that the token before has taken stay with it.
      if (token.lstrip) begin = std::max(begin - trailing_spaces(text.substr(0, begin)), done);
      if (token.rstrip) end += leading_spaces(text.substr(end));
      if (done < begin) spans.push_back({done, begin, std::nullopt});
      spans.push_back({begin, end, token.id});
      done = end;
    }
  }
  if (done < text.size()) spans.push_back({done, text.size(), std::nullopt});
  return spans;
}

const AddedToken* AddedTokens::find(int32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[found->second];
}

const AddedToken* AddedTokens::find(std::string_view content) const {
  const auto found = by_content_.find(std::string(content));
  return found == by_content_.end() ? nullptr : &tokens_[found->second];
}

bool AddedTokens::is_special_text(std::string_view text) const {
  return special_.contains(std::string(text));
}

}  // namespace fastserve
