#include "model/tokenizer/pre_tokenizer.h"

#include <fmt/format.h>

#include "model/tokenizer/pattern.h"
#include "model/tokenizer/unicode.h"

namespace fastserve {
namespace {

constexpr const char* kGpt2Words =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// Punctuation as the tokenizers library knows it: ASCII's, and Unicode 8's category P. Excluded is
/// what became punctuation later, added what later was something else.
constexpr const char* kPunctuation =
    R"((?![\x{61D}\x{9FD}\x{A76}\x{C77}\x{C84}\x{1B7D}-\x{1B7E}\x{2E43}-\x{2E4F}\x{2E52}-\x{2E5D})"
    R"(\x{10EAD}\x{10F55}-\x{10F59}\x{10F86}-\x{10F89}\x{1144B}-\x{1144F}\x{1145A}-\x{1145B})"
    R"(\x{1145D}\x{11660}-\x{1166C}\x{116B9}\x{1183B}\x{11944}-\x{11946}\x{119E2})"
    R"(\x{11A3F}-\x{11A46}\x{11A9A}-\x{11A9C}\x{11A9E}-\x{11AA2}\x{11C41}-\x{11C45})"
    R"(\x{11C70}-\x{11C71}\x{11EF7}-\x{11EF8}\x{11FFF}\x{12FF1}-\x{12FF2}\x{16E97}-\x{16E9A})"
    R"(\x{16FE2}\x{1E95E}-\x{1E95F}])[\p{P}$+<=>\^\x60|~\x{166D}\x{111C9}])";

/// Hands every stretch of `text` to add(begin, end, is_match), in order and without gaps.
template <class Add>
Status each_stretch(const Regex& regex, std::string_view text, Add add) {
  Regex::Scan scan(regex, text);
  size_t done = 0;
  for (;;) {
    FS_ASSIGN(const auto match, scan.next());
    if (!match) break;
    if (match->begin != done) FS_TRY(add(done, match->begin, false));
    FS_TRY(add(match->begin, match->end, true));
    done = match->end;
  }
  if (done != text.size()) FS_TRY(add(done, text.size(), false));
  return {};
}

}  // namespace

/// Joins stretches into pieces as a behaviour says.
template <class Emit>
class PreTokenizer::Joiner {
 public:
  Joiner(Behavior behavior, Emit emit) : behavior_(behavior), emit_(emit) {}

  Status add(size_t begin, size_t end, bool is_match) {
    if (behavior_ == Behavior::kIsolated) return emit_(begin, end);
    if (behavior_ == Behavior::kRemoved) return is_match ? Status() : emit_(begin, end);
    const bool join = open_ && joins(is_match);
    last_was_match_ = is_match;
    if (join) {
      end_ = end;
      return {};
    }
    FS_TRY(finish());
    open_ = true, begin_ = begin, end_ = end;
    return {};
  }

  Status finish() {
    if (!open_) return {};
    open_ = false;
    return emit_(begin_, end_);
  }

 private:
  bool joins(bool is_match) const {
    if (behavior_ == Behavior::kContiguous) return is_match == last_was_match_;
    if (behavior_ == Behavior::kMergedWithPrevious) return is_match && !last_was_match_;
    return !is_match && last_was_match_;
  }

  Behavior behavior_;
  Emit emit_;
  bool open_ = false, last_was_match_ = false;
  size_t begin_ = 0, end_ = 0;
};

Result<PreTokenizer> PreTokenizer::parse(const Json* spec, const std::string& where) {
  PreTokenizer pre_tokenizer;
  if (spec != nullptr) FS_TRY(pre_tokenizer.add({*spec, where}));
  return pre_tokenizer;
}

PreTokenizer PreTokenizer::gpt2() {
  PreTokenizer pre_tokenizer;
  ByteLevel level{.add_prefix_space = false, .words = std::nullopt};
  Result<Regex> words = Regex::compile(kGpt2Words, "");
  FS_CHECK(words.ok());
  level.words = std::move(words).value();
  pre_tokenizer.steps_.emplace_back(std::move(level));
  return pre_tokenizer;
}

Status PreTokenizer::add(const Section& section) {
  FS_ASSIGN(const std::string type, section.required_text("type"));
  const Section named{section.json, section.where + ": " + type};
  if (type == "Sequence") {
    FS_ASSIGN(const Json::Array* list, section.required_list("pretokenizers"));
    for (const Json& item : *list) FS_TRY(add({item, section.where}));
    return {};
  }
  if (type == "Split") return add_split(named);
  if (type == "ByteLevel") return add_byte_level(named);
  if (type == "Metaspace") return add_metaspace(named);
  if (type == "Digits") {
    FS_ASSIGN(const bool single, named.flag("individual_digits", false));
    return add_pattern("\\p{N}", single ? Behavior::kIsolated : Behavior::kContiguous, false,
                       named.where);
  }
  if (type == "Punctuation") {
    FS_ASSIGN(const std::string name, named.text("behavior", "Isolated"));
    FS_ASSIGN(const Behavior behavior, parse_behavior(named, name));
    return add_pattern(kPunctuation, behavior, false, named.where);
  }
  if (type == "WhitespaceSplit") return add_pattern("\\s", Behavior::kRemoved, false, named.where);
  if (type == "Whitespace")  // with the join controls, which this dialect's \w lacks
    return add_pattern("[\\w\\x{200C}\\x{200D}]+|[^\\w\\s\\x{200C}\\x{200D}]+", Behavior::kRemoved,
                       true, named.where);
  return section.unsupported(fmt::format("the pre-tokenizer \"{}\" is not supported", type));
}

Status PreTokenizer::add_pattern(const std::string& pattern, Behavior behavior, bool invert,
                                 const std::string& where) {
  FS_ASSIGN(Regex regex, Regex::compile(pattern, where));
  steps_.emplace_back(Split{std::move(regex), behavior, invert});
  return {};
}

Result<PreTokenizer::Behavior> PreTokenizer::parse_behavior(const Section& section,
                                                            const std::string& name) {
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return section.unsupported(fmt::format("the behavior \"{}\" is not supported", name));
}

Status PreTokenizer::add_split(const Section& section) {
  FS_ASSIGN(const std::string name, section.required_text("behavior"));
  FS_ASSIGN(const Behavior behavior, parse_behavior(section, name));
  FS_ASSIGN(const bool invert, section.flag("invert", false));
  FS_ASSIGN(Pattern pattern, Pattern::parse(section));
  steps_.emplace_back(Split{std::move(pattern).take_regex(), behavior, invert});
  return {};
}

Status PreTokenizer::add_byte_level(const Section& section) {
  if (section.json.find_set("add_prefix_space") == nullptr)
    return section.corrupt("has no \"add_prefix_space\"");
  FS_ASSIGN(const bool add_prefix_space, section.flag("add_prefix_space", true));
  FS_ASSIGN(const bool use_regex, section.flag("use_regex", true));
  ByteLevel level{.add_prefix_space = add_prefix_space, .words = std::nullopt};
  if (use_regex) {
    FS_ASSIGN(Regex words, Regex::compile(kGpt2Words, section.where));
    level.words = std::move(words);
  }
  steps_.emplace_back(std::move(level));
  return {};
}

Status PreTokenizer::add_metaspace(const Section& section) {
  FS_ASSIGN(std::string replacement, section.character("replacement"));
  FS_ASSIGN(const bool add_prefix_space, section.flag("add_prefix_space", true));
  FS_ASSIGN(const std::string scheme,
            section.text("prepend_scheme", add_prefix_space ? "always" : "never"));
  FS_ASSIGN(const bool split, section.flag("split", true));
  if (!add_prefix_space && scheme != "never")
    return section.corrupt("\"add_prefix_space\" and \"prepend_scheme\" contradict each other");
  Prepend prepend = Prepend::kNever;
  if (scheme == "first")
    prepend = Prepend::kFirst;
  else if (scheme == "always")
    prepend = Prepend::kAlways;
  else if (scheme != "never")
    return section.unsupported(fmt::format("the prepend_scheme \"{}\" is not supported", scheme));
  steps_.emplace_back(Metaspace{std::move(replacement), prepend, split});
  return {};
}

Status PreTokenizer::cut_from(size_t step, std::string_view text, bool at_start,
                              PieceSink& sink) const {
  if (text.empty()) return {};
  if (step == steps_.size()) return sink.take(text, false);
  return std::visit([&](const auto& s) { return apply(s, step + 1, text, at_start, sink); },
                    steps_[step]);
}

Status PreTokenizer::apply(const Split& split, size_t next, std::string_view text, bool at_start,
                           PieceSink& sink) const {
  const auto emit = [&](size_t begin, size_t end) {
    return cut_from(next, text.substr(begin, end - begin), at_start && begin == 0, sink);
  };
  Joiner joiner(split.behavior, emit);
  FS_TRY(each_stretch(split.regex, text, [&](size_t begin, size_t end, bool is_match) {
    return joiner.add(begin, end, is_match != split.invert);
  }));
  return joiner.finish();
}

Status PreTokenizer::apply(const ByteLevel& level, size_t next, std::string_view text,
                           bool at_start, PieceSink& sink) const {
  std::string prefixed;
  if (level.add_prefix_space && text[0] != ' ') {
    prefixed.append(1, ' ').append(text);
    text = prefixed;
  }
  const auto emit = [&](size_t begin, size_t end, bool) -> Status {
    const std::string_view piece = text.substr(begin, end - begin);
    if (piece.empty()) return {};
    if (next == steps_.size()) return sink.take(piece, true);
    return cut_from(next, spell_bytes(piece), at_start && begin == 0, sink);
  };
  if (!level.words) return emit(0, text.size(), true);
  return each_stretch(*level.words, text, emit);
}

Status PreTokenizer::apply(const Metaspace& space, size_t next, std::string_view text,
                           bool at_start, PieceSink& sink) const {
  std::string marked;
  marked.reserve(text.size() + text.size() / 2);
  const bool starts_marked = text[0] == ' ' || text.starts_with(space.replacement);
  const bool wanted =
      space.prepend == Prepend::kAlways || (space.prepend == Prepend::kFirst && at_start);
  if (wanted && !starts_marked) marked += space.replacement;
  for (const char c : text) {
    if (c == ' ')
      marked += space.replacement;
    else
      marked += c;
  }
  if (!space.split) return cut_from(next, marked, at_start, sink);

  const auto emit = [&](size_t begin, size_t end) {
    return cut_from(next, std::string_view(marked).substr(begin, end - begin),
                    at_start && begin == 0, sink);
  };
  Joiner joiner(Behavior::kMergedWithNext, emit);
  size_t done = 0;
  for (size_t hit; (hit = marked.find(space.replacement, done)) != marked.npos;) {
    if (hit != done) FS_TRY(joiner.add(done, hit, false));
    done = hit + space.replacement.size();
    FS_TRY(joiner.add(hit, done, true));
  }
  if (done != marked.size()) FS_TRY(joiner.add(done, marked.size(), false));
  return joiner.finish();
}

}  // namespace fastserve
