// Chat templates against what Jinja itself rendered.
#include "serve/jinja.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <map>

#include "base/file.h"
#include "serve/chat_parity.h"

using namespace fastserve;

namespace {

std::vector<Path> folders() {
  std::vector<Path> out = {Path(FASTSERVE_SOURCE_DIR) / "tests/data/reference/chat_templates"};
  const char* given = std::getenv("FASTSERVE_REFERENCE");
  const Path whole =
      (given ? Path(given) : Path(FASTSERVE_SOURCE_DIR).parent_path() / "shared/reference") /
      "chat_templates";
  if (std::filesystem::exists(whole / "cases.jsonl")) out.push_back(whole);
  return out;
}

std::string rendered(const std::string& text, const Json& variables = Json(Json::Object{})) {
  auto program = JinjaTemplate::parse(text, "t");
  if (!program.ok()) return "refused: " + program.error().what;
  const auto out = program->render(variables);
  return out.ok() ? *out : "failed: " + out.error().what;
}

}  // namespace

TEST_CASE("every recorded conversation is written as Jinja wrote it") {
  for (const Path& folder : folders()) {
    const std::string lines = read_file(folder / "cases.jsonl").value();
    int cases = 0;
    for (size_t at = 0; at < lines.size(); cases++) {
      const size_t end = lines.find('\n', at);
      const Json line = Json::parse(lines.substr(at, end - at), "cases.jsonl").value();
      at = end + 1;
      CAPTURE(line.find("id")->as_string());
      const auto text = render_chat_case(folder, line);
      if (const Json* expected = line.find_set("expected")) {
        REQUIRE_MESSAGE(text.ok(), text.error().message());
        CHECK(*text == expected->as_string());
      } else {
        REQUIRE_FALSE(text.ok());
        if (*line.find("error_kind") == Json("raise_exception"))
          CHECK(text.error().what == line.find("error")->as_string());
      }
    }
    CHECK(cases > 0);
  }
}

TEST_CASE("blanks around blocks go as trim_blocks and lstrip_blocks say") {
  CHECK(rendered("a\n  {% if true %}\nb\n  {% endif %}\nc\n") == "a\nb\nc");
  CHECK(rendered("a {% if true %} b{% endif %}\n") == "a  b");
  CHECK(rendered("a\n  {{ 1 }}\n\nb") == "a\n  1\n\nb");
  CHECK(rendered("a \n {{- 1 -}} \n b") == "a1b");
  CHECK(rendered("a\n  {%+ if true %}b{% endif +%}\nc") == "a\n  b\nc");
  CHECK(rendered("a\n  {# x #}\nb{#- y -#}  c") == "a\nbc");
  CHECK(rendered("{% raw %}{{ x }}{% if %}{% endraw %}\r\nz\r\n") == "{{ x }}{% if %}z");
}

TEST_CASE("operators bind as in Jinja") {
  const std::map<std::string, std::string> cases = {
      {"1 + 2 * 3", "7"},
      {"2 * 3 ~ 'x'", "6x"},
      {"2 ** 3 ** 2", "64"},
      {"-7 // 2", "-4"},
      {"-7 % 3", "2"},
      {"7 / 2", "3.5"},
      {"not 1 == 2 and 3 in [3]", "True"},
      {"1 < 2 < 3", "True"},
      {"'a' if false", ""},
      {"'a' if 0 else 'b' if 1 else 'c'", "b"},
      {"[1, 2, 3][-1:]", "[3]"},
      {"'h\\u00e9llo'[1:3]", "\u00e9l"},
      {"'abc'[::-1]", "cba"},
      {"x is not defined", "True"},
      {"3 is divisibleby 3 and 4 is even", "True"},
      {"'a-b c'|title ~ '|' ~ 'a-b c'.title()", "A-B C|A-B C"},
      {"[3, 1, 2]|sort|join(',')", "1,2,3"},
      {"[{'a': 1}, {'a': 2}]|map(attribute='a')|list", "[1, 2]"},
      {"[1, none, 2]|reject('none')|list", "[1, 2]"},
      {"'a, b'.split(', ', 1)", "['a', 'b']"},
      {"' a  b '.split()", "['a', 'b']"},
      {"\"it's\" ~ ['it\\'s']", "it's[\"it's\"]"},
      {"1e3 ~ 1.5 ~ 10 ** 2", "1000.01.5100"},
      {"{'a': {'b': [1, 2.0, none, true]}}|tojson", "{\"a\": {\"b\": [1, 2.0, null, true]}}"},
      {"'ab' * 2 + 'c'", "ababc"},
      {"(1, 2) + (3,)", "(1, 2, 3)"},
      {"range(3)|list ~ range(5, 1, -2)|list", "[0, 1, 2][5, 3]"},
  };
  for (const auto& [expression, expected] : cases) {
    CAPTURE(expression);
    CHECK(rendered("{{ " + expression + " }}") == expected);
  }
}

TEST_CASE("a name set in a loop ends with it, and a namespace carries it out") {
  CHECK(rendered("{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}") == "1");
  CHECK(rendered("{% set n = namespace(x=1) %}{% for i in [1] %}{% set n.x = 2 %}{% endfor %}"
                 "{{ n.x }}") == "2");
  CHECK(rendered("{% if true %}{% set x = 3 %}{% endif %}{{ x }}") == "3");
  CHECK(rendered("{% set a, b = 1, [2] %}{{ a }}{{ b }}") == "1[2]");
  CHECK(rendered("{% set t | upper | trim %} a {% endset %}{{ t }}.") == "A.");
  CHECK(rendered("{% macro m(a, b='d') %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(b=2) }}") ==
        "1d2");
  CHECK(rendered("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{{ loop.nextitem is defined }}"
                 "{% endfor %}") == "a1False");
}

TEST_CASE("what a template may not do is refused, with the line") {
  CHECK(rendered("a\n{{ x.y }}") == "failed: 'x' is undefined");
  CHECK(rendered("{{ 'a' + 1 }}") == "failed: unsupported operand types for +: 'str' and 'int'");
  CHECK(rendered("{{ [].append(1) }}").starts_with("failed: "));
  CHECK(rendered("{% include 'x' %}") == "refused: line 1: the block \"include\" is not supported");
  CHECK(rendered("a\n{% if x %}") == "refused: line 2: a block has no endif");
  CHECK(rendered("{{ 1 | frobnicate }}") == "failed: the filter \"frobnicate\" is not supported");
  for (const char* broken : {"{{", "{{ 'a }}", "{% for %}{% endfor %}", "{{ (1 }}", "{{ ) }}", "{#",
                             "{% raw %}", "{{ 1 1 }}", "{% endif %}", "{{ a[ }}", "{% set = 1 %}"})
    CHECK_MESSAGE(rendered(broken).starts_with("refused: "), broken);
  const auto program = JinjaTemplate::parse("a\n\n{{ raise_exception('No: ' ~ 1) }}", "file");
  const auto out = program->render(Json(Json::Object{}));
  REQUIRE_FALSE(out.ok());
  CHECK(out.error().what == "No: 1");
  CHECK(out.error().where == "file:3");
}

TEST_CASE("a template that never ends, or ends too large, is stopped") {
  const char* loop =
      "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
  CHECK(rendered(loop) == "failed: the template runs for too long");
  CHECK(rendered("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}") ==
        "failed: macros call each other too deeply");
  CHECK(rendered("{% set n = namespace(t='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}"
                 "{% set n.t = n.t ~ n.t %}{% endfor %}") == "failed: the text grows too long");
  CHECK(rendered("{{ " + std::string(5000, '(') + " }}").starts_with("refused: "));
  std::string nested;
  for (int i = 0; i < 5000; i++) nested += "{% if 1 %}";
  CHECK(rendered(nested).starts_with("refused: "));
  CHECK(rendered("{% set n = namespace() %}{% set n.n = n %}").starts_with("failed: "));
}
