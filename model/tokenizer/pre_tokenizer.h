// The "pre_tokenizer" of tokenizer.json: how a text is cut into the pieces that merges stay inside.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "model/tokenizer/fields.h"
#include "model/tokenizer/regex.h"

namespace fastserve {

/// Takes the pieces in their order.
class PieceSink {
 public:
  virtual ~PieceSink() = default;
  /// `spelled_as_bytes`: the vocabulary spells this piece in GPT-2's byte alphabet.
  virtual Status take(std::string_view piece, bool spelled_as_bytes) = 0;
};

/// Threads: const calls from any thread.
/// Knows: ByteLevel, Split, Digits, Punctuation, Whitespace, WhitespaceSplit, Metaspace and
/// sequences of them.
class PreTokenizer {
 public:
  /// `spec` may be null: then a text is one piece.
  static Result<PreTokenizer> parse(const Json* spec, const std::string& where);
  /// What GPT-2 uses, and train_bpe with it.
  static PreTokenizer gpt2();

  /// `at_start`: the text is the start of the whole input.
  Status cut(std::string_view text, bool at_start, PieceSink& sink) const {
    return cut_from(0, text, at_start, sink);
  }

 private:
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kFirst, kAlways, kNever };
  template <class Emit>
  class Joiner;
  struct Split {
    Regex regex;
    Behavior behavior;
    bool invert;
  };
  struct ByteLevel {
    bool add_prefix_space;
    std::optional<Regex> words;  ///< none: the text stays whole
  };
  struct Metaspace {
    std::string replacement;
    Prepend prepend;
    bool split;
  };
  using Step = std::variant<Split, ByteLevel, Metaspace>;

  Status add(const Section& section);
  Status add_split(const Section& section);
  Status add_byte_level(const Section& section);
  Status add_metaspace(const Section& section);
  Status add_pattern(const std::string& pattern, Behavior behavior, bool invert,
                     const std::string& where);
  static Result<Behavior> parse_behavior(const Section& section, const std::string& name);

  Status cut_from(size_t step, std::string_view text, bool at_start, PieceSink& sink) const;
  Status apply(const Split& split, size_t next, std::string_view text, bool at_start,
               PieceSink& sink) const;
  Status apply(const ByteLevel& level, size_t next, std::string_view text, bool at_start,
               PieceSink& sink) const;
  Status apply(const Metaspace& space, size_t next, std::string_view text, bool at_start,
               PieceSink& sink) const;

  std::vector<Step> steps_;
};

}  // namespace fastserve
