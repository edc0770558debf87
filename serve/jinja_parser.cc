// Statements from the segments of a template.
#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>

#include "serve/jinja_expressions.h"

namespace fastserve::jinja {
namespace {

class Parser {
 public:
  explicit Parser(std::string_view text) : segments_(cut_template(text)) {}

  Block run() {
    Block out;
    std::string end;
    parse_block({}, out, end);
    return out;
  }
  int line() const { return line_; }

 private:
  /// Statements up to a block that begins with one of `ends`, whose name goes to `end`; the cursor
  /// stays on it, behind its name.
  void parse_block(std::initializer_list<std::string_view> ends, Block& out, std::string& end) {
    if (++depth_ > kDeepest) fail("blocks are nested too deeply");
    for (; next_ < segments_.size(); next_++) {
      const Segment& segment = segments_[next_];
      line_ = segment.line;
      at_ = 0;
      if (segment.kind == Segment::kText) {
        out.push_back({.kind = Statement::kText, .line = line_, .text = segment.text});
        continue;
      }
      ExpressionParser in(segment.tokens, at_);
      if (segment.kind == Segment::kExpression) {
        out.push_back({.kind = Statement::kPrint, .line = line_, .value = in.tuple()});
        finish(in);
        continue;
      }
      const std::string word = in.name();
      if (std::find(ends.begin(), ends.end(), word) != ends.end()) {
        end = word;
        depth_--;
        return;
      }
      statement(word, in, out);
    }
    if (ends.size() > 0) fail(fmt::format("a block has no {}", *ends.begin()));
    depth_--;
  }

  void finish(const ExpressionParser& in) const {
    if (!in.at_end()) in.unexpected("the end of the block");
  }

  void statement(const std::string& word, ExpressionParser& in, Block& out) {
    Statement made{.line = line_};
    if (word == "if") {
      parse_if(in, made);
    } else if (word == "for") {
      parse_for(in, made);
    } else if (word == "set") {
      parse_set(in, made);
    } else if (word == "macro") {
      parse_macro(in, made);
    } else if (word == "break" || word == "continue") {
      made.kind = word == "break" ? Statement::kBreak : Statement::kContinue;
      finish(in);
    } else if (word == "generation") {  // marks what the assistant said; the text is the same
      finish(in);
      body({"endgeneration"}, out);
      return;
    } else {
      throw Problem{fmt::format("the block \"{}\" is not supported", word), true};
    }
    out.push_back(std::move(made));
  }

  /// The statements behind the block at hand, and the name of the block that ends them.
  std::string body(std::initializer_list<std::string_view> ends, Block& out) {
    next_++;
    std::string end;
    parse_block(ends, out, end);
    return end;
  }

  /// The tokens of the block at the cursor, behind its name.
  ExpressionParser here() { return {segments_[next_].tokens, at_}; }

  void parse_if(ExpressionParser& in, Statement& made) {
    if (++depth_ > kDeepest) fail("blocks are nested too deeply");
    made.kind = Statement::kIf;
    made.value = in.choice();
    finish(in);
    const std::string end = body({"endif", "elif", "else"}, made.body);
    if (end == "elif") {
      Statement other{.line = line_};
      ExpressionParser rest = here();
      parse_if(rest, other);
      made.otherwise.push_back(std::move(other));
    } else if (end == "else") {
      body({"endif"}, made.otherwise);
    }
    depth_--;
  }

  void parse_for(ExpressionParser& in, Statement& made) {
    made.kind = Statement::kFor;
    do {
      if (in.is_name("in")) break;  // a comma at the end
      made.targets.push_back(in.name());
    } while (in.take(","));
    unpacks(made);
    if (!in.take_name("in")) in.unexpected("'in'");
    made.value = in.choice(false);
    if (in.take_name("if")) made.condition = in.choice();
    if (in.is_name("recursive")) throw Problem{"recursive loops are not supported", true};
    finish(in);
    if (body({"endfor", "else"}, made.body) == "else") body({"endfor"}, made.otherwise);
  }

  static void unpacks(const Statement& made) {
    if (made.targets.empty()) fail("a loop has no variable");
  }

  void parse_set(ExpressionParser& in, Statement& made) {
    do {
      std::string target = in.name();
      if (in.take(".")) target.append(1, '.').append(in.name());
      made.targets.push_back(std::move(target));
    } while (in.take(","));
    if (in.take("=")) {
      made.kind = Statement::kSet;
      made.value = in.tuple();
      finish(in);
      return;
    }
    made.kind = Statement::kSetBlock;
    if (!in.at_end()) {
      auto text = std::make_unique<Expression>();
      text->kind = Expression::kName;
      text->text = kCaptured;
      made.value = in.filters(std::move(text));
    }
    finish(in);
    body({"endset"}, made.body);
  }

  void parse_macro(ExpressionParser& in, Statement& made) {
    made.kind = Statement::kMacro;
    made.text = in.name();
    in.require("(");
    for (bool first = true; !in.take(")"); first = false) {
      if (!first) {
        in.require(",");
        if (in.take(")")) break;
      }
      std::string parameter = in.name();
      made.parameters.emplace_back(std::move(parameter), in.take("=") ? in.choice() : nullptr);
    }
    finish(in);
    body({"endmacro"}, made.body);
  }

  std::vector<Segment> segments_;
  size_t next_ = 0, at_ = 0;
  int line_ = 1, depth_ = 0;
};

}  // namespace

Block parse_template(std::string_view text) {
  Parser parser(text);
  try {
    return parser.run();
  } catch (Problem& problem) {
    problem.what = fmt::format("line {}: {}", parser.line(), problem.what);
    throw;
  }
}

}  // namespace fastserve::jinja
