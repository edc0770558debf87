// Training a byte-level BPE.
#include <doctest/doctest.h>

#include <algorithm>

#include "base/rng.h"
#include "model/tokenizer.h"
#include "tests/tokenizer/test_files.h"

namespace fastserve {
namespace {

using Alphabet = BpeTrainerOptions::Alphabet;

Result<std::string> train(std::string_view text, const BpeTrainerOptions& options) {
  return train_bpe(std::span(&text, 1), options);
}

std::shared_ptr<const Tokenizer> trained(std::string_view text, const BpeTrainerOptions& options) {
  const auto json = train(text, options);
  REQUIRE_MESSAGE(json.ok(), json.error().message());
  const auto tokenizer = Tokenizer::from_json(*json, "trained");
  REQUIRE_MESSAGE(tokenizer.ok(), tokenizer.error().message());
  return *tokenizer;
}

std::vector<std::string> merges_of(const Tokenizer& tokenizer) {
  std::vector<std::string> merges;
  const Json json = parse_json(tokenizer.json());
  for (const Json& merge : json.find("model")->find("merges")->as_array())
    merges.push_back(merge.as_string());
  return merges;
}

/// The definition, in the plainest form: count all pairs of all words anew before each merge.
std::vector<std::string> plain_merges(std::vector<std::pair<std::vector<int>, int64_t>> words,
                                      std::vector<std::string> tokens, size_t wanted) {
  std::vector<std::string> merges;
  while (merges.size() < wanted) {
    std::vector<std::pair<std::pair<int, int>, int64_t>> counts;
    for (const auto& [word, weight] : words)
      for (size_t i = 0; i + 1 < word.size(); i++) {
        const std::pair pair(word[i], word[i + 1]);
        const auto known = std::find_if(counts.begin(), counts.end(),
                                        [&](const auto& entry) { return entry.first == pair; });
        if (known == counts.end())
          counts.emplace_back(pair, weight);
        else
          known->second += weight;
      }
    const auto best = std::min_element(counts.begin(), counts.end(), [](auto& a, auto& b) {
      return a.second != b.second ? a.second > b.second : a.first < b.first;
    });
    if (best == counts.end() || best->second < 2) break;
    const auto [left, right] = best->first;
    const std::string whole =
        tokens[static_cast<size_t>(left)] + tokens[static_cast<size_t>(right)];
    merges.push_back(tokens[static_cast<size_t>(left)] + " " + tokens[static_cast<size_t>(right)]);
    const auto known = std::find(tokens.begin(), tokens.end(), whole);
    const auto id = static_cast<int>(known - tokens.begin());
    if (known == tokens.end()) tokens.push_back(whole);
    for (auto& [word, weight] : words)
      for (size_t i = 0; i + 1 < word.size(); i++)
        if (word[i] == left && word[i + 1] == right) {
          word[i] = id;
          word.erase(word.begin() + static_cast<std::ptrdiff_t>(i) + 1);
        }
  }
  return merges;
}

}  // namespace

TEST_CASE("the seen-bytes alphabet of a text without merges is its characters in byte order") {
  const auto tokenizer = trained(
      "hello\nworld", {.vocab_size = 0, .alphabet = Alphabet::kSeenBytes, .special_tokens = {}});
  CHECK(tokenizer->vocab_size() == 8);  // \n d e h l o r w
  CHECK(tokenizer->encode("\ndehlorw").value() == std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7});
  CHECK(!tokenizer->encode("x").ok());
}

TEST_CASE("the pair that occurs most is merged first and equal ones by their ids") {
  const auto tokenizer =
      trained("ab ab ab cd cd cd ef ef", {.vocab_size = 300, .special_tokens = {}});
  CHECK(merges_of(*tokenizer) == std::vector<std::string>{"\u0120 c", "a b", "\u0120c d",
                                                          "\u0120 e", "\u0120 ab", "\u0120e f"});
}

TEST_CASE("incremental counting finds the merges that counting anew before each one finds") {
  Rng rng(11);
  for (int round = 0; round < 30; round++) {
    std::string text;
    std::vector<std::pair<std::vector<int>, int64_t>> words;
    const uint64_t letters = 2 + rng.below(3);
    for (int word = 0; word < 40; word++) {
      std::vector<int> symbols;
      for (uint64_t i = 1 + rng.below(12); i > 0; i--)
        symbols.push_back(static_cast<int>(rng.below(letters)));
      for (const int symbol : symbols) text += static_cast<char>('a' + symbol);
      text += '\n';
      words.emplace_back(std::move(symbols), 1);
    }
    std::vector<std::string> tokens;
    for (uint64_t i = 0; i < letters; i++) tokens.emplace_back(1, static_cast<char>('a' + i));
    const auto tokenizer = trained(text, {.vocab_size = static_cast<int>(letters) + 21,
                                          .alphabet = Alphabet::kSeenBytes,
                                          .special_tokens = {}});
    const auto found = merges_of(*tokenizer);
    CHECK(found.size() >= 15);
    CHECK(found == plain_merges(words, tokens, found.size()));
  }
}

TEST_CASE("any text comes back from a tokenizer trained on another one") {
  const std::string text = read_text(test_data() / "reference/tokenizers/bpe-gpt2-512/cases.jsonl");
  const auto tokenizer = trained(text, {.vocab_size = 700});
  CHECK(tokenizer->vocab_size() == 700);
  CHECK(tokenizer->token_id("<|endoftext|>") == 699);
  CHECK(tokenizer->is_special(699));
  const std::string other = "Gr\u00fc\u00dfe \u4f60\u597d \U0001f469\u200d\U0001f680 \t\n\x01";
  CHECK(tokenizer->decode(tokenizer->encode(other).value()) == other);
}

TEST_CASE("the order of the texts does not change what is learned") {
  const std::string_view one = "the cat sat on the mat ", two = "the dog ate the cat\n";
  const std::string_view forth[] = {one, two}, back[] = {two, one};
  CHECK(train_bpe(forth, {.vocab_size = 280}).value() ==
        train_bpe(back, {.vocab_size = 280}).value());
}

TEST_CASE("rare pairs are left alone") {
  const auto tokenizer = trained("abcabc xy", {.vocab_size = 400, .min_frequency = 2});
  CHECK(merges_of(*tokenizer) == std::vector<std::string>{"a b", "ab c"});
}

TEST_CASE("training refuses what cannot be, and says what can") {
  const auto check = [](std::string_view text, const BpeTrainerOptions& options,
                        const std::string& named) {
    const auto json = train(text, options);
    REQUIRE(!json.ok());
    CHECK(json.error().code == ErrorCode::kInvalidArgument);
    CAPTURE(json.error().message());
    CHECK(json.error().message().find(named) != std::string::npos);
  };
  check("text", {.vocab_size = 256}, "257");
  check("text", {.vocab_size = -1}, "vocab_size");
  check("bad \xff", {}, "offset 4");
  check("text", {.special_tokens = {""}}, "special_tokens");
  check("text", {.special_tokens = {"<s>", "<s>"}}, "<s>");
  check("text", {.special_tokens = {"a"}}, "\"a\"");
}

TEST_CASE("one long word is learned from without slowing down") {
  Rng rng(5);
  std::string text;
  for (int i = 0; i < 300'000; i++) text += static_cast<char>('a' + rng.below(26));
  const auto tokenizer = trained(text, {.vocab_size = 3000});
  CHECK(tokenizer->vocab_size() == 3000);
}

}  // namespace fastserve
