#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <unordered_map>
#include <unordered_set>

#include "model/tokenizer.h"
#include "model/tokenizer/pair_counts.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/unicode.h"

namespace fastserve {
namespace {

/// Symbols are kept with 31-bit places.
constexpr size_t kMostSymbols = (size_t{1} << 31) - 1;

/// How often each different piece of the texts occurs.
class WordCounts final : public PieceSink {
 public:
  Status take(std::string_view piece, bool) override {
    counts_[std::string(piece)]++;
    return {};
  }
  /// By their bytes, so that the order of the texts does not matter.
  std::vector<std::pair<std::string_view, int64_t>> sorted() const {
    std::vector<std::pair<std::string_view, int64_t>> words(counts_.begin(), counts_.end());
    std::sort(words.begin(), words.end());
    return words;
  }

 private:
  std::unordered_map<std::string, int64_t> counts_;
};

/// The vocabulary under construction: tokens as the bytes they stand for.
class Training {
 public:
  explicit Training(const BpeTrainerOptions& options) : options_(options) {}

  Status choose_alphabet(const std::array<bool, 256>& seen) {
    for (int byte = 0; byte < 256; byte++) {
      const auto at = static_cast<size_t>(byte);
      if (options_.alphabet == BpeTrainerOptions::Alphabet::kSeenBytes && !seen[at]) continue;
      symbol_of_[at] = add_token(std::string(1, static_cast<char>(byte)));
    }
    const size_t least = tokens_.size() + options_.special_tokens.size();
    if (options_.vocab_size != 0 && static_cast<int64_t>(least) > options_.vocab_size)
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("{} is too small for {} bytes and {} special tokens",
                               options_.vocab_size, tokens_.size(), options_.special_tokens.size()),
                   "vocab_size", fmt::format("give at least {}", least)};
    return {};
  }

  size_t merges_wanted() const {
    if (options_.vocab_size == 0) return 0;
    return static_cast<size_t>(options_.vocab_size) - tokens_.size() -
           options_.special_tokens.size();
  }

  Status learn(const std::vector<std::pair<std::string_view, int64_t>>& words) {
    const size_t wanted = tokens_.size() + merges_wanted();
    PairCounts counts;
    size_t total = 0;
    std::vector<int32_t> symbols;
    for (const auto& [word, count] : words) {
      total += word.size();
      if (total > kMostSymbols)
        return Error{ErrorCode::kResourceExhausted, "different words add up to more than 2 GiB",
                     "texts", "train the tokenizer on a part of the data"};
      symbols.clear();
      for (const char byte : word) symbols.push_back(symbol_of_[static_cast<uint8_t>(byte)]);
      counts.add_word(symbols, count);
    }
    counts.start();
    while (tokens_.size() < wanted) {
      const auto pair = counts.best();
      if (!pair || pair->count < options_.min_frequency) break;
      std::string whole = tokens_[static_cast<size_t>(pair->left)];
      whole += tokens_[static_cast<size_t>(pair->right)];
      merges_.push_back(fmt::format("{} {}", spelled(pair->left), spelled(pair->right)));
      counts.merge(pair->left, pair->right, add_token(std::move(whole)));
    }
    return {};
  }

  Result<std::string> write() const;

 private:
  int32_t add_token(std::string bytes) {
    const auto [found, is_new] = ids_.emplace(bytes, static_cast<int32_t>(tokens_.size()));
    if (is_new) tokens_.push_back(std::move(bytes));
    return found->second;
  }
  std::string spelled(int32_t id) const { return spell_bytes(tokens_[static_cast<size_t>(id)]); }

  const BpeTrainerOptions& options_;
  std::array<int32_t, 256> symbol_of_{};
  std::vector<std::string> tokens_;
  std::unordered_map<std::string, int32_t> ids_;
  std::vector<std::string> merges_;
};

Json byte_level(bool add_prefix_space) {
  return Json::object({{"type", "ByteLevel"},
                       {"add_prefix_space", add_prefix_space},
                       {"trim_offsets", true},
                       {"use_regex", true}});
}

Result<std::string> Training::write() const {
  Json::Object vocabulary;
  std::unordered_set<std::string> taken;
  for (size_t id = 0; id < tokens_.size(); id++) {
    std::string token = spelled(static_cast<int32_t>(id));
    taken.insert(token);
    vocabulary.emplace_back(std::move(token), Json(id));
  }
  Json::Array added;
  for (const std::string& token : options_.special_tokens) {
    FS_TRY(require_utf8(token, "special_tokens"));
    if (token.empty() || !taken.insert(token).second)
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("\"{}\" is empty, listed twice or an ordinary token", token),
                   "special_tokens", "choose another spelling, like <|name|>"};
    added.push_back(Json::object({{"id", Json(tokens_.size() + added.size())},
                                  {"content", token},
                                  {"single_word", false},
                                  {"lstrip", false},
                                  {"rstrip", false},
                                  {"normalized", false},
                                  {"special", true}}));
  }
  return Json::object({{"version", "1.0"},
                       {"truncation", nullptr},
                       {"padding", nullptr},
                       {"added_tokens", std::move(added)},
                       {"normalizer", nullptr},
                       {"pre_tokenizer", byte_level(false)},
                       {"post_processor", byte_level(false)},
                       {"decoder", byte_level(true)},
                       {"model", Json::object({{"type", "BPE"},
                                               {"dropout", nullptr},
                                               {"unk_token", nullptr},
                                               {"continuing_subword_prefix", nullptr},
                                               {"end_of_word_suffix", nullptr},
                                               {"fuse_unk", false},
                                               {"byte_fallback", false},
                                               {"ignore_merges", false},
                                               {"vocab", std::move(vocabulary)},
                                               {"merges", Json::array_of(merges_)}})}})
      .dump(1);
}

}  // namespace

Result<std::string> train_bpe(std::span<const std::string_view> texts,
                              const BpeTrainerOptions& options) {
  if (options.vocab_size < 0)
    return Error{ErrorCode::kInvalidArgument, "is negative", "vocab_size", "give 0 or more"};
  const PreTokenizer pre_tokenizer = PreTokenizer::gpt2();
  WordCounts words;
  std::array<bool, 256> seen{};
  for (size_t i = 0; i < texts.size(); i++) {
    FS_TRY(require_utf8(texts[i], fmt::format("text {}", i)));
    for (const char byte : texts[i]) seen[static_cast<uint8_t>(byte)] = true;
    FS_TRY(pre_tokenizer.cut(texts[i], true, words));
  }
  Training training(options);
  FS_TRY(training.choose_alphabet(seen));
  if (training.merges_wanted() > 0) FS_TRY(training.learn(words.sorted()));
  return training.write();
}

}  // namespace fastserve
