// The "added_tokens" of tokenizer.json: tokens that are found in the text before anything is cut.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/result.h"
#include "model/tokenizer/fields.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/vocabulary.h"

namespace fastserve {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  std::string normalized_content;  ///< what is looked for, and what is decoded, when `normalized`
  bool single_word = false, lstrip = false, rstrip = false;
  bool normalized = true;  ///< looked for in the normalised text
  bool special = false;
};

/// Finds the longest of a set of texts at each place, from left to right.
class TextFinder {
 public:
  void add(std::string_view text, size_t index);

  struct Hit {
    size_t begin, end, index;
  };
  /// The first hit at or behind `from`.
  std::optional<Hit> find(std::string_view text, size_t from) const;
  bool empty() const { return nodes_.size() == 1; }

 private:
  struct Node {
    std::vector<std::pair<char, int32_t>> next;
    int64_t index = -1;  ///< -1: no text ends here
  };
  int32_t child(int32_t node, char byte) const;
  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::vector<uint8_t> starts_ = std::vector<uint8_t>(256);  ///< bytes that some text starts with
};

/// Threads: const calls from any thread.
/// Promises: ids as the tokenizers library gives them: the vocabulary's own for a token it knows,
///           else the next free one, whatever the file says.
class AddedTokens {
 public:
  /// `list` may be null.
  static Result<AddedTokens> parse(const Json* list, const std::string& where,
                                   const Vocabulary& vocabulary, const Normalizer& normalizer);

  struct Span {
    size_t begin, end;
    std::optional<int32_t> id;  ///< none: plain text
  };
  /// Cuts `text` at the tokens that are looked for in raw text, or in normalised text.
  std::vector<Span> split(std::string_view text, bool normalized, bool parse_special) const;

  const AddedToken* find(int32_t id) const;
  const AddedToken* find(std::string_view content) const;
  bool is_special_text(std::string_view text) const;
  int32_t end() const { return end_; }  ///< the largest id + 1

 private:
  Status add(const Section& section, const Vocabulary& vocabulary, const Normalizer& normalizer,
             int32_t& next_id);
  void index();

  std::vector<AddedToken> tokens_;
  std::unordered_map<int32_t, size_t> by_id_;
  std::unordered_map<std::string, size_t> by_content_;
  std::unordered_set<std::string> special_;
  TextFinder raw_, normalized_;
  int32_t end_ = 0;
};

}  // namespace fastserve
