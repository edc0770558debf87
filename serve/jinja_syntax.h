// A chat template as a tree.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "serve/jinja_value.h"

namespace fastserve::jinja {

struct Token {
  enum Kind { kName, kNumber, kString, kOperator, kEnd } kind = kEnd;
  std::string text;  ///< of a string: what it stands for
  Value number;
  int line = 0;
};

/// A stretch of the template: text, or what stands between two markers, in tokens.
struct Segment {
  enum Kind { kText, kExpression, kStatement } kind = kText;
  std::string text;
  std::vector<Token> tokens;
  int line = 0;
};

/// Cuts a template as Jinja's lexer does with trim_blocks and lstrip_blocks. Throws Problem.
std::vector<Segment> cut_template(std::string_view text);

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum Kind {
    kLiteral,    ///< value
    kName,       ///< text
    kList,       ///< items
    kTuple,      ///< items
    kDict,       ///< items: key, value, key, value...
    kMember,     ///< items[0].text
    kSubscript,  ///< items[0][items[1]]
    kSlice,      ///< items[0][items[1]:items[2]:items[3]], each of which may be null
    kCall,       ///< items[0](items[1...], named)
    kFilter,     ///< items[0] | text(items[1...], named)
    kTest,       ///< items[0] is text(items[1...], named)
    kUnary,      ///< text items[0]: not, -, +
    kBinary,     ///< items[0] text items[1], with "and" and "or" among the operators
    kCompare,    ///< items[0] operators[0] items[1] operators[1] items[2]...
    kChoice,     ///< items[0] if items[1] else items[2], which may be null
  };
  Kind kind = kLiteral;
  int line = 0;
  std::string text;
  Value value;
  std::vector<ExpressionPtr> items;
  std::vector<std::string> operators;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
};

/// The name of a block's text where filters take it; no template can spell it.
inline constexpr char kCaptured[] = " captured";

struct Statement;
using Block = std::vector<Statement>;

struct Statement {
  enum Kind {
    kText,      ///< text
    kPrint,     ///< value
    kIf,        ///< value, body, otherwise
    kFor,       ///< targets in value, if condition: body; otherwise when nothing is left
    kSet,       ///< targets = value
    kSetBlock,  ///< targets = the text of body, through the filters of value, if there are any
    kMacro,     ///< text(parameters): body
    kBreak,
    kContinue,
  };
  Kind kind = kText;
  int line = 0;
  std::string text = {};
  ExpressionPtr value = {}, condition = {};
  std::vector<std::string> targets = {};  ///< names; of kSet "space.member" as well
  std::vector<std::pair<std::string, ExpressionPtr>> parameters = {};  ///< with defaults or null
  Block body = {}, otherwise = {};
};

/// Throws Problem.
Block parse_template(std::string_view text);

}  // namespace fastserve::jinja
