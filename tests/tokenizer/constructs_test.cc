// Constructs that the reference tokenizers do not use, against results recorded from the tokenizers
// library 0.23.3: each line changes some sections of a reference tokenizer.
#include <doctest/doctest.h>

#include "base/file.h"
#include "base/json.h"
#include "model/tokenizer.h"
#include "tests/tokenizer/test_files.h"

namespace fastserve {
namespace {

std::string build(const Json& line) {
  const Path base =
      test_data() / "reference/tokenizers" / line.find("base")->as_string() / "tokenizer.json";
  Json json = parse_json(read_text(base));
  for (const auto& [key, value] : line.find("patch")->as_object()) json.set(key, value);
  Json model = *json.find("model");
  for (const auto& [key, value] : line.find("model")->as_object()) model.set(key, value);
  Json::Object vocabulary;
  for (const auto& member : model.find("vocab")->as_object()) {
    bool kept = true;
    for (const Json& token : line.find("without")->as_array())
      kept = kept && token.as_string() != member.first;
    if (kept) vocabulary.push_back(member);
  }
  model.set("vocab", std::move(vocabulary));
  json.set("model", std::move(model));
  return json.dump();
}

/// A member that is left out where it equals another one.
const Json& member_or(const Json& line, const char* key, const char* same) {
  const Json* member = line.find(key);
  return member != nullptr ? *member : *line.find(same);
}

std::string encoded(const Tokenizer& tokenizer, const Json& line, const EncodeOptions& options) {
  const auto ids = tokenizer.encode(line.find("text")->as_string(), options);
  return ids.ok() ? Json::array_of(*ids).dump() : ids.error().message();
}

std::vector<int32_t> ids_of(const Json& list) {
  std::vector<int32_t> ids;
  for (const Json& id : list.as_array()) ids.push_back(static_cast<int32_t>(id.as_int()));
  return ids;
}

void check_case(const Tokenizer& tokenizer, const Json& line) {
  CAPTURE(line.find("text")->dump());
  CHECK(encoded(tokenizer, line, {}) == line.find("ids")->dump());
  CHECK(encoded(tokenizer, line, {.add_special_tokens = true}) ==
        member_or(line, "ids_bos", "ids").dump());
  CHECK(encoded(tokenizer, line, {.parse_special_tokens = false}) ==
        member_or(line, "ids_plain", "ids").dump());
  CHECK(tokenizer.decode(ids_of(*line.find("ids"))) ==
        member_or(line, "decoded", "text").as_string());
  const auto other = ids_of(*line.find("other_ids"));
  CHECK(tokenizer.decode(other) == line.find("other_decoded")->as_string());
  CHECK(tokenizer.decode(other, true) ==
        member_or(line, "other_skipped", "other_decoded").as_string());
}

}  // namespace

TEST_CASE("pre-tokenizers, normalisers, decoders and added tokens of other files act as recorded") {
  int lines = 0;
  for (const std::string& text : read_lines(test_data() / "tokenizers/constructs.jsonl")) {
    const Json line = parse_json(text);
    CAPTURE(line.find("name")->as_string());
    const auto tokenizer = Tokenizer::from_json(build(line), line.find("name")->as_string());
    REQUIRE_MESSAGE(tokenizer.ok(), tokenizer.error().message());
    for (const Json& one : line.find("cases")->as_array()) check_case(**tokenizer, one);
    lines++;
  }
  CHECK(lines >= 80);
}

}  // namespace fastserve
