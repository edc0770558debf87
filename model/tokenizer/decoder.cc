#include "model/tokenizer/decoder.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <utility>

#include "model/tokenizer/unicode.h"

namespace fastserve {
namespace {

/// The end of the chain: the text itself.
class Collect final : public DecodeStage {
 public:
  explicit Collect(std::string& text) : DecodeStage(nullptr), text_(text) {}
  void push(std::string_view token) override { text_ += token; }
  void finish() override {}

 private:
  std::string& text_;
};

class JoinWithSpaces final : public DecodeStage {
 public:
  using DecodeStage::DecodeStage;
  void push(std::string_view token) override {
    if (!first_) next_->push(" ");
    first_ = false;
    next_->push(token);
  }

 private:
  bool first_ = true;
};

class PassOn final : public DecodeStage {
 public:
  using DecodeStage::DecodeStage;
  void push(std::string_view token) override { next_->push(token); }
};

/// Puts the parts of a fused token together for a step that needs the whole.
class CollectToken final : public DecodeStage {
 public:
  using DecodeStage::DecodeStage;
  void push(std::string_view part) override { token_ += part; }
  void finish() override {
    next_->push(token_);
    next_->finish();
  }

 private:
  std::string token_;
};

class ByteLevelStage final : public DecodeStage {
 public:
  using DecodeStage::DecodeStage;
  void push(std::string_view token) override {
    out_.clear();
    const std::optional<std::string> bytes = unspell_bytes(token);
    utf8_.push(bytes ? std::string_view(*bytes) : token, out_);
    next_->push(out_);
  }
  void finish() override {
    out_.clear();
    utf8_.finish(out_);
    next_->push(out_);
    next_->finish();
  }

 private:
  LossyUtf8 utf8_;
  std::string out_;
};

/// The byte that a token like <0x0A> stands for.
std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  unsigned value = 0;
  const char* const begin = token.data() + (token[3] == '+' ? 4 : 3);  // as Rust parses numbers
  const auto [end, error] = std::from_chars(begin, token.data() + 5, value, 16);
  if (error != std::errc() || end != token.data() + 5 || *begin == '-') return std::nullopt;
  return static_cast<char>(value);
}

/// A run of byte tokens is text when all of it is UTF-8, else one U+FFFD for each byte.
class ByteFallbackStage final : public DecodeStage {
 public:
  using DecodeStage::DecodeStage;
  void push(std::string_view token) override {
    if (const std::optional<char> byte = fallback_byte(token)) {
      bytes_ += *byte;
      return;
    }
    end_run();
    next_->push(token);
  }
  void finish() override {
    end_run();
    next_->finish();
  }

 private:
  void end_run() {
    if (bytes_.empty()) return;
    if (!find_invalid_utf8(bytes_))
      next_->push(bytes_);
    else
      for (size_t i = 0; i < bytes_.size(); i++) next_->push("\uFFFD");
    bytes_.clear();
  }
  std::string bytes_;
};

class MetaspaceStage final : public DecodeStage {
 public:
  MetaspaceStage(std::string replacement, bool drops_first, DecodeStage* next)
      : DecodeStage(next), replacement_(std::move(replacement)), drop_(drops_first) {}
  void push(std::string_view token) override {
    std::string out;
    size_t done = 0;
    for (size_t hit; (hit = token.find(replacement_, done)) != token.npos;
         done = hit + replacement_.size()) {
      out += token.substr(done, hit - done);
      if (!drop_) out += ' ';
    }
    drop_ = false;
    next_->push(out.append(token.substr(done)));
  }

 private:
  std::string replacement_;
  bool drop_;  ///< this is the first token: its marks vanish
};

class ReplaceStage final : public DecodeStage {
 public:
  ReplaceStage(const Pattern& pattern, const std::string& content, DecodeStage* next)
      : DecodeStage(next), pattern_(pattern), content_(content) {}
  void push(std::string_view token) override {
    const Result<std::string> replaced = pattern_.replace(token, content_);
    // A pattern that gives up on a token of the vocabulary leaves it as it is spelled.
    next_->push(replaced.ok() ? std::string_view(*replaced) : token);
  }

 private:
  const Pattern& pattern_;
  const std::string& content_;
};

struct StripSpec {
  std::string content;
  size_t start, stop;
};

class StripStage final : public DecodeStage {
 public:
  StripStage(const StripSpec& spec, DecodeStage* next) : DecodeStage(next), spec_(spec) {}
  void push(std::string_view token) override {
    for (size_t i = 0; i < spec_.start && token.starts_with(spec_.content); i++)
      token.remove_prefix(spec_.content.size());
    for (size_t i = 0; i < spec_.stop && token.ends_with(spec_.content); i++)
      token.remove_suffix(spec_.content.size());
    next_->push(token);
  }

 private:
  const StripSpec& spec_;
};

/// Strips the start of a token that comes in parts.
class StripStart final : public DecodeStage {
 public:
  StripStart(const StripSpec& spec, DecodeStage* next)
      : DecodeStage(next), spec_(spec), left_(spec.start) {}
  void push(std::string_view part) override {
    for (; left_ > 0 && part.starts_with(spec_.content); left_--)
      part.remove_prefix(spec_.content.size());
    if (!part.empty()) left_ = 0;
    next_->push(part);
  }

 private:
  const StripSpec& spec_;
  size_t left_;
};

template <class Stage, class... Arguments>
std::unique_ptr<DecodeStage> make(DecodeStage* next, const Arguments&... arguments) {
  return std::make_unique<Stage>(arguments..., next);
}

}  // namespace

Result<TokenDecoder> TokenDecoder::parse(const Json* spec, const std::string& where) {
  TokenDecoder decoder;
  if (spec != nullptr)
    FS_TRY(decoder.add({*spec, where}));
  else
    decoder.joins_with_spaces_ = true;
  return decoder;
}

Status TokenDecoder::add(const Section& section) {
  FS_ASSIGN(const std::string type, section.required_text("type"));
  const Section named{section.json, section.where + ": " + type};
  if (type == "Sequence") {
    FS_ASSIGN(const Json::Array* list, section.required_list("decoders"));
    for (const Json& item : *list) FS_TRY(add({item, section.where}));
  } else if (type == "ByteLevel") {
    steps_.push_back({.make = make<ByteLevelStage>, .fuses = true});
  } else if (type == "ByteFallback") {
    steps_.push_back({.make = make<ByteFallbackStage>});
  } else if (type == "Fuse") {
    steps_.push_back({.make = make<PassOn>, .fuses = true, .make_behind_fused = make<PassOn>});
  } else if (type == "Strip") {
    return add_strip(named);
  } else if (type == "Replace") {
    return add_replace(named);
  } else if (type == "Metaspace") {
    return add_metaspace(named);
  } else {
    return section.unsupported(fmt::format("the decoder \"{}\" is not supported", type));
  }
  return {};
}

Status TokenDecoder::add_strip(const Section& section) {
  auto spec = std::make_shared<StripSpec>();
  FS_ASSIGN(spec->content, section.character("content"));
  FS_ASSIGN(const int64_t start, section.number("start", 0));
  FS_ASSIGN(const int64_t stop, section.number("stop", 0));
  if (start < 0 || stop < 0) return section.corrupt("\"start\" or \"stop\" is negative");
  spec->start = static_cast<size_t>(start), spec->stop = static_cast<size_t>(stop);
  Step step{.make = [spec](DecodeStage* next) { return make<StripStage>(next, *spec); }};
  if (stop == 0)
    step.make_behind_fused = [spec](DecodeStage* next) { return make<StripStart>(next, *spec); };
  steps_.push_back(std::move(step));
  return {};
}

Status TokenDecoder::add_replace(const Section& section) {
  FS_ASSIGN(Pattern pattern, Pattern::parse(section));
  FS_ASSIGN(std::string content, section.required_text("content"));
  auto spec =
      std::make_shared<std::pair<Pattern, std::string>>(std::move(pattern), std::move(content));
  steps_.push_back({.make = [spec](DecodeStage* next) -> std::unique_ptr<DecodeStage> {
    return std::make_unique<ReplaceStage>(spec->first, spec->second, next);
  }});
  return {};
}

Status TokenDecoder::add_metaspace(const Section& section) {
  FS_ASSIGN(std::string replacement, section.character("replacement"));
  FS_ASSIGN(const bool add_prefix_space, section.flag("add_prefix_space", true));
  FS_ASSIGN(const std::string scheme,
            section.text("prepend_scheme", add_prefix_space ? "always" : "never"));
  const bool drops = scheme != "never";
  steps_.push_back({.make = [replacement, drops](DecodeStage* next) {
    return make<MetaspaceStage>(next, replacement, drops);
  }});
  return {};
}

TokenDecoder::Stream::Stream(const TokenDecoder& decoder) {
  stages_.push_back(std::make_unique<Collect>(text_));
  if (decoder.joins_with_spaces_)
    stages_.push_back(std::make_unique<JoinWithSpaces>(stages_.back().get()));
  for (size_t i = decoder.steps_.size(); i-- > 0;) {
    const Step& step = decoder.steps_[i];
    bool fused = false;
    for (size_t k = 0; k < i; k++) fused |= decoder.steps_[k].fuses;
    if (fused && step.make_behind_fused) {
      stages_.push_back(step.make_behind_fused(stages_.back().get()));
      continue;
    }
    stages_.push_back(step.make(stages_.back().get()));
    if (fused) stages_.push_back(std::make_unique<CollectToken>(stages_.back().get()));
  }
  first_ = stages_.back().get();
}

std::string TokenDecoder::Stream::take() { return std::exchange(text_, {}); }

}  // namespace fastserve
