// What encode, decode and the stream promise, and what broken files and texts meet.
#include "model/tokenizer.h"

#include <doctest/doctest.h>

#include <thread>

#include "base/rng.h"
#include "tests/tokenizer/test_files.h"

namespace fastserve {
namespace {

using Ids = std::vector<int32_t>;

std::shared_ptr<const Tokenizer> load(const std::string& name) {
  auto tokenizer = Tokenizer::load(test_data() / "reference/tokenizers" / name / "tokenizer.json");
  REQUIRE_MESSAGE(tokenizer.ok(), tokenizer.error().message());
  return *tokenizer;
}

/// A tokenizer.json with a two-letter model; `sections` are further members.
std::string tiny(const std::string& sections, const std::string& model = "") {
  return R"({"version": "1.0", )" + sections + R"("model": {"type": "BPE", )" + model +
         R"("vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})";
}

Error refusal(const std::string& json) {
  const auto tokenizer = Tokenizer::from_json(json, "tokenizer.json");
  REQUIRE(!tokenizer.ok());
  return tokenizer.error();
}

const char* const kReferences[] = {"bpe-gpt2-4096",  "bpe-gpt2-512",   "bpe-llama3-2048",
                                   "bpe-qwen2-1536", "spm-bpe-legacy", "spm-bpe-metaspace"};

}  // namespace

TEST_CASE("a file with a construct that is not known is refused by the construct's name") {
  const auto check = [](const std::string& json, const std::string& named) {
    const Error error = refusal(json);
    CHECK(error.code == ErrorCode::kUnsupported);
    CAPTURE(error.message());
    CHECK(error.message().find(named) != std::string::npos);
    CHECK(error.message().find("tokenizer.json") == 0);
  };
  check(R"({"model": {"type": "Unigram", "vocab": []}})", "Unigram");
  check(R"({"version": "2.0", "model": {}})", "2.0");
  check(tiny(R"("normalizer": {"type": "Precompiled"}, )"), "Precompiled");
  check(tiny(R"("pre_tokenizer": {"type": "UnicodeScripts"}, )"), "UnicodeScripts");
  check(tiny(R"("decoder": {"type": "CTC"}, )"), "CTC");
  check(tiny(R"("post_processor": {"type": "Odd"}, )"), "Odd");
  check(tiny("", R"("dropout": 0.1, )"), "dropout");
  check(tiny("", R"("end_of_word_suffix": "</w>", )"), "</w>");
  check(tiny(R"("pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a&&b]"},)"
             R"("behavior": "Isolated", "invert": false}, )"),
        "intersection");
  check(tiny(R"("pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a"},)"
             R"("behavior": "Isolated", "invert": false}, )"),
        "(a");
}

TEST_CASE("a file that contradicts itself is called corrupt, with the section and the reason") {
  const auto check = [](const std::string& json, const std::string& named) {
    const Error error = refusal(json);
    CHECK(error.code == ErrorCode::kCorrupt);
    CAPTURE(error.message());
    CHECK(error.message().find(named) != std::string::npos);
  };
  check("{", "tokenizer.json");
  check("[]", "not an object");
  check(R"({"version": "1.0"})", "no \"model\"");
  check(R"({"model": {"vocab": {"a": 0}, "merges": ["a a"]}})", "\"aa\"");
  check(R"({"model": {"vocab": {"a": 0}, "merges": ["a b c"]}})", "two tokens");
  check(R"({"model": {"vocab": {"a": 0, "b": 0}, "merges": []}})", "same id");
  check(R"({"model": {"vocab": {"a": -1}, "merges": []}})", "\"a\"");
  check(R"({"model": {"vocab": {"a": 2147483647}, "merges": []}})", "\"a\"");
  check(R"({"model": {"vocab": {"a": 0}}})", "no \"merges\"");
  check(tiny(R"("added_tokens": [{"id": 3}], )"), "content");
  check(tiny(R"("post_processor": {"type": "TemplateProcessing",)"
             R"("single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": {}}, )"),
        "<s>");
}

TEST_CASE("the malformed tokenizer files are refused and the well-formed control is not") {
  const Path directory = test_data() / "reference/malformed/tokenizer";
  if (!std::filesystem::exists(directory)) return;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    CAPTURE(entry.path().string());
    const auto tokenizer = Tokenizer::load(entry.path());
    const bool is_control = entry.path().filename() == "ok_control.json";
    CHECK(tokenizer.ok() == is_control);
    if (!tokenizer.ok()) CHECK(tokenizer.error().where.find(entry.path().string()) == 0);
  }
}

TEST_CASE("a text that is not UTF-8 is refused with the offset of the bad byte") {
  for (const char* bad :
       {"ab\xff", "ab\xc3", "ab\xed\xa0\x80", "ab\xc0\x80", "ab\xf4\x90\x80\x80"}) {
    const auto ids = load("bpe-gpt2-512")->encode(bad);
    REQUIRE(!ids.ok());
    CHECK(ids.error().code == ErrorCode::kInvalidArgument);
    CHECK(ids.error().message().find("offset 2") != std::string::npos);
  }
}

TEST_CASE("a character without token, bytes or unknown token is refused and named") {
  const auto tokenizer = Tokenizer::from_json(tiny(""), "tokenizer.json");
  REQUIRE(tokenizer.ok());
  CHECK((*tokenizer)->encode("abba").value() == Ids{2, 1, 0});
  const auto ids = (*tokenizer)->encode("ab\u20ac");
  REQUIRE(!ids.ok());
  CHECK(ids.error().message().find("U+20AC") != std::string::npos);
}

TEST_CASE("ids outside the vocabulary decode to nothing") {
  const auto tokenizer = load("bpe-gpt2-512");
  const Ids ids = {-1, 39, 512, 1 << 30, INT32_MIN, 40};
  CHECK(tokenizer->decode(ids) == tokenizer->decode(Ids{39, 40}));
  CHECK(tokenizer->token_text(512).empty());
  CHECK(!tokenizer->is_special(-1));
}

TEST_CASE("tokens are found by their text and special ones are marked") {
  const auto tokenizer = load("bpe-gpt2-512");
  CHECK(tokenizer->vocab_size() == 512);
  CHECK(tokenizer->token_id("<|endoftext|>") == 508);
  CHECK(tokenizer->token_text(508) == "<|endoftext|>");
  CHECK(tokenizer->is_special(508));
  CHECK(tokenizer->token_id("he") == 257);
  CHECK(!tokenizer->is_special(257));
  CHECK(!tokenizer->token_id("no such token"));
  CHECK(!tokenizer->json().empty());
}

TEST_CASE("a stream's pieces join to the decoded whole, for any ids") {
  for (const char* name : kReferences) {
    const auto tokenizer = load(name);
    Rng rng(7);
    for (int round = 0; round < 200; round++) {
      Ids ids;
      const bool bytes = rng.below(2) == 0;  // low ids: partial characters and byte tokens
      for (uint64_t i = rng.below(20); i > 0; i--)
        ids.push_back(static_cast<int32_t>(
            rng.below(bytes ? 260 : static_cast<uint64_t>(tokenizer->vocab_size()))));
      const bool skip = rng.below(2) == 0;
      StreamDecoder stream(tokenizer, skip);
      std::string joined;
      for (const int32_t id : ids) joined += stream.push(id);
      joined += stream.finish();
      CHECK(joined == tokenizer->decode(ids, skip));
    }
  }
}

TEST_CASE("a stream hands out whole characters as soon as they are complete") {
  const auto tokenizer = load("bpe-gpt2-512");
  const Ids euro = tokenizer->encode("\u20ac").value();
  REQUIRE(euro.size() == 3);
  StreamDecoder stream(tokenizer, false);
  CHECK(stream.push(euro[0]).empty());
  CHECK(stream.push(euro[1]).empty());
  CHECK(stream.push(euro[2]) == "\u20ac");
  CHECK(stream.push(257) == "he");
  CHECK(stream.push(euro[0]).empty());
  CHECK(stream.finish() == "\ufffd");
}

TEST_CASE("a run of byte tokens waits until its end shows whether it is text") {
  const auto tokenizer = load("spm-bpe-legacy");
  const int32_t a = *tokenizer->token_id("<0x41>"), bad = *tokenizer->token_id("<0xFF>");
  const int32_t the = *tokenizer->token_id("\u2581the");
  StreamDecoder text(tokenizer, false);
  CHECK(text.push(a).empty());
  CHECK(text.push(the) == "A the");
  StreamDecoder broken(tokenizer, false);
  CHECK(broken.push(a).empty());
  CHECK(broken.push(bad).empty());
  CHECK(broken.finish() == "\ufffd\ufffd");
}

TEST_CASE("long runs of one character are encoded in one piece without slowing down") {
  // At this length anything quadratic takes hours: the test would run into its time limit.
  constexpr size_t kLength = 500'000;
  for (const char* name : kReferences) {
    CAPTURE(name);
    const auto tokenizer = load(name);
    for (const std::string& unit : {std::string("a"), std::string(" "), std::string("\n"),
                                    std::string("\u0301\u0323"), std::string("'s")}) {
      std::string text;
      while (text.size() < kLength) text += unit;
      const auto ids = tokenizer->encode(text);
      REQUIRE_MESSAGE(ids.ok(), ids.error().message());
      if (std::string_view(name).starts_with("bpe-gpt2")) CHECK(tokenizer->decode(*ids) == text);
    }
  }
}

TEST_CASE("several threads may use one tokenizer at once") {
  const auto tokenizer = load("bpe-llama3-2048");
  const std::string text = read_text(test_data() / "tokenizers/tiny/bytes.json");
  const Ids expected = tokenizer->encode(text).value();
  std::vector<Ids> found(4);
  std::vector<std::thread> threads;
  for (Ids& ids : found) threads.emplace_back([&] { ids = tokenizer->encode(text).value(); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& ids : found) CHECK(ids == expected);
}

TEST_CASE("a long text is encoded like its lines, which merges never cross") {
  const auto tokenizer = load("bpe-gpt2-4096");
  std::string text;
  Ids expected;
  Rng rng(3);
  for (int line = 0; line < 500; line++) {
    std::string one;
    for (uint64_t i = rng.below(30) + 1; i > 0; i--)
      one += static_cast<char>("etaoin shrdlu"[rng.below(13)]);
    one += "x\n";
    text += one;
    const Ids ids = tokenizer->encode(one).value();
    expected.insert(expected.end(), ids.begin(), ids.end());
  }
  CHECK(tokenizer->encode(text).value() == expected);
}

}  // namespace fastserve
