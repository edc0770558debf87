#include "serve/chat.h"

#include <doctest/doctest.h>

#include <map>

#include "base/file.h"
#include "base/json.h"

using namespace fastserve;

namespace {

const Path kFolder = Path(FASTSERVE_SOURCE_DIR) / "tests/data/reference/chat_templates";

ChatFormat format_of(const std::string& jinja, const Json& tokens) {
  Json config = tokens;
  config.set("chat_template", jinja);
  return ChatFormat::from_documents({{"tokenizer_config.json", config.dump()}});
}

}  // namespace

TEST_CASE("the well-known chat templates are written as Jinja would write them") {
  std::map<std::string, int> seen;
  const std::string lines = read_file(kFolder / "cases.jsonl").value();
  for (size_t at = 0; at < lines.size();) {
    const size_t end = lines.find('\n', at);
    const Json item = Json::parse(lines.substr(at, end - at), "cases.jsonl").value();
    at = end + 1;
    const std::string name = item.find("template")->as_string();
    CAPTURE(item.find("id")->as_string());
    std::vector<ChatFormat::Turn> turns;
    for (const Json& m : item.find("messages")->as_array())
      turns.emplace_back(m.find("role")->as_string(), m.find("content")->as_string());
    const auto format = format_of(read_file(kFolder / name).value(), *item.find("kwargs"));
    const auto text = format.format(turns, item.find("add_generation_prompt")->as_bool());
    ++seen[name];
    if (const Json* expected = item.find_set("expected")) {
      REQUIRE(text.ok());
      CHECK(*text == expected->as_string());
    } else {
      REQUIRE_FALSE(text.ok());
      CHECK(text.error().code == ErrorCode::kInvalidArgument);
    }
  }
  CHECK(seen.size() == 7);
}

TEST_CASE("a model without a template, or with one that cannot be read, gets plain lines") {
  const std::vector<ChatFormat::Turn> turns = {
      {"user", "Hi"}, {"assistant", "Yes?"}, {"user", "x"}};
  for (const std::map<std::string, std::string>& documents :
       {std::map<std::string, std::string>{},
        {{"tokenizer_config.json", "not json"}},
        {{"chat_template.jinja", "{% include 'other' %}"}}}) {
    const ChatFormat format = ChatFormat::from_documents(documents);
    CHECK_FALSE(format.has_template());
    CHECK(format.problem().has_value() == documents.contains("chat_template.jinja"));
    CHECK(format.format(turns).value() == "user: Hi\nassistant: Yes?\nuser: x\nassistant:");
  }
}

TEST_CASE("a template's own system text is kept, and one that is given replaces it") {
  const ChatFormat format = ChatFormat::from_documents(
      {{"chat_template.jinja",
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}"
        "{% endif %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
        "message['content'] + '<|im_end|>\\n' }}{% endfor %}"}});
  const std::vector<ChatFormat::Turn> user = {{"user", "Hi"}};
  CHECK(format.format(user, false).value() ==
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
  const std::vector<ChatFormat::Turn> own = {{"system", "S"}, {"user", "Hi"}};
  CHECK(format.format(own, false).value() ==
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
}

TEST_CASE("an empty conversation is refused") { CHECK_FALSE(ChatFormat().format({}).ok()); }

TEST_CASE("a template is given the model's tokens, and its own words reach the user") {
  const ChatFormat format = ChatFormat::from_documents(
      {{"tokenizer_config.json",
        R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null, "chat_template":
            [{"name": "tool_use", "template": "no"}, {"name": "default", "template":
            "{% if messages[0].role != 'user' %})"
        R"({{ raise_exception('Begin with a question') }}{% endif %})"
        R"({{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}"}]})"}});
  const std::vector<ChatFormat::Turn> user = {{"user", "Hi"}}, other = {{"assistant", "Hi"}};
  CHECK(format.format(user).value() == "<s>Hi</s>");
  const auto refused = format.format(other);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().what == "Begin with a question");
}
