// Runs a template's tree.
#include "serve/jinja.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "serve/jinja_syntax.h"

namespace fastserve {
namespace jinja {
namespace {

constexpr int64_t kMostSteps = 5'000'000;
constexpr size_t kMostText = size_t{64} << 20;
constexpr int kDeepestCall = 50;

/// Names and their values; a loop's body and a macro's see those around them.
struct Scope {
  Scope* outer = nullptr;
  std::map<std::string, Value, std::less<>> names = {};

  const Value* find(std::string_view name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->outer)
      if (const auto found = scope->names.find(name); found != scope->names.end())
        return &found->second;
    return nullptr;
  }
};

class Runner {
 public:
  Runner(const Block& program, const Json& variables) : program_(program) {
    for (const auto& [name, value] : variables.as_object())
      root_.names[name] = Value::from_json(value);
    const auto global = [this](const char* name, Function function) {
      root_.names.emplace(name, Value(std::move(function)));
    };
    global("raise_exception", [](const Arguments& a) -> Value {
      fail(a.positional.empty() ? "the template raised an exception" : a.positional[0].str());
    });
    global("namespace", [](const Arguments& a) {
      Dict members;
      if (!a.positional.empty() && a.positional[0].dict()) members = *a.positional[0].dict();
      for (const auto& member : a.named) members.push_back(member);
      return Value::dict(std::move(members), true);
    });
    global("dict", [](const Arguments& a) { return Value::dict(a.named); });
    global("range", [](const Arguments& a) { return range(a); });
  }

  std::string run() {
    std::string out;
    block(program_, root_, out);
    return out;
  }
  int line() const { return line_; }

 private:
  enum class Flow { kOn, kBreak, kContinue };

  void step(int line) {
    line_ = line;
    charge(1);
  }
  void charge(int64_t steps) {
    if ((steps_ += steps) > kMostSteps) fail("the template runs for too long");
  }
  /// A value costs what it takes to make or to go through it.
  const Value& charged(const Value& value) {
    if (const List* list = value.list()) charge(static_cast<int64_t>(list->size()));
    if (const Dict* dict = value.dict()) charge(static_cast<int64_t>(dict->size()));
    if (const std::string* text = value.text()) charge(static_cast<int64_t>(text->size() / 64));
    return value;
  }

  void emit(std::string_view text, std::string& out) {
    out += text;
    if (out.size() > kMostText) fail("the text grows too long");
  }

  Flow block(const Block& statements, Scope& scope, std::string& out) {
    for (const Statement& statement : statements)
      if (const Flow flow = run(statement, scope, out); flow != Flow::kOn) return flow;
    return Flow::kOn;
  }

  Flow run(const Statement& s, Scope& scope, std::string& out) {
    step(s.line);
    switch (s.kind) {
      case Statement::kText:
        emit(s.text, out);
        break;
      case Statement::kPrint:
        emit(evaluate(*s.value, scope).str(), out);
        break;
      case Statement::kIf:
        return block(evaluate(*s.value, scope).truth() ? s.body : s.otherwise, scope, out);
      case Statement::kFor:
        return loop(s, scope, out);
      case Statement::kSet:
        assign(s.targets, evaluate(*s.value, scope), scope);
        break;
      case Statement::kSetBlock:
        assign(s.targets, captured(s, scope), scope);
        break;
      case Statement::kMacro:
        scope.names[s.text] = Value([this, &s](const Arguments& a) { return call_macro(s, a); });
        break;
      case Statement::kBreak:
        return Flow::kBreak;
      case Statement::kContinue:
        return Flow::kContinue;
    }
    return Flow::kOn;
  }

  Value captured(const Statement& s, Scope& scope) {
    std::string text;
    Scope inner{&scope};
    block(s.body, inner, text);
    if (!s.value) return text;
    inner.names[kCaptured] = text;
    return evaluate(*s.value, inner);
  }

  void assign(const std::vector<std::string>& targets, const Value& value, Scope& scope) {
    if (targets.size() == 1) return assign_one(targets[0], value, scope);
    const List items = value.iterate();
    if (items.size() != targets.size())
      fail(fmt::format("{} values for {} names", items.size(), targets.size()));
    for (size_t i = 0; i < items.size(); i++) assign_one(targets[i], items[i], scope);
  }

  static void assign_one(const std::string& target, const Value& value, Scope& scope) {
    const size_t dot = target.find('.');
    if (dot == target.npos) {
      scope.names[target] = value;
      return;
    }
    const Value* space = scope.find(target.substr(0, dot));
    Dict* members = space ? space->changeable() : nullptr;
    if (members == nullptr) fail("cannot assign attribute on non-namespace object");
    if (value.changeable()) fail("a namespace cannot hold a namespace");
    const std::string name = target.substr(dot + 1);
    for (auto& [key, held] : *members)
      if (key == name) {
        held = value;
        return;
      }
    members->emplace_back(name, value);
  }

  Flow loop(const Statement& s, Scope& scope, std::string& out) {
    List items;
    for (Value& item : charged(evaluate(*s.value, scope)).iterate()) {
      if (s.condition) {
        Scope inner{&scope};
        assign(s.targets, item, inner);
        if (!evaluate(*s.condition, inner).truth()) continue;
      }
      items.push_back(std::move(item));
    }
    if (items.empty()) return block(s.otherwise, scope, out);
    for (size_t i = 0; i < items.size(); i++) {
      step(s.line);
      Scope inner{&scope};
      inner.names["loop"] = loop_variable(items, i);
      assign(s.targets, items[i], inner);
      if (block(s.body, inner, out) == Flow::kBreak) break;
    }
    return Flow::kOn;
  }

  static Value loop_variable(const List& items, size_t i) {
    const auto at = static_cast<int64_t>(i), size = static_cast<int64_t>(items.size());
    Dict members = {
        {"index", at + 1},
        {"index0", at},
        {"revindex", size - at},
        {"first", i == 0},
        {"last", at + 1 == size},
        {"revindex0", size - at - 1},
        {"length", size},
        {"previtem", i == 0 ? Value(Undefined{"there is no previous item"}) : items[i - 1]},
        {"nextitem", at + 1 == size ? Value(Undefined{"there is no next item"}) : items[i + 1]}};
    members.emplace_back("cycle", Value([i](const Arguments& a) -> Value {
                           if (a.positional.empty()) fail("no items for cycling given");
                           return a.positional[i % a.positional.size()];
                         }));
    return Value::dict(std::move(members));
  }

  Value call_macro(const Statement& macro, const Arguments& arguments) {
    if (++calls_ > kDeepestCall) fail("macros call each other too deeply");
    if (arguments.positional.size() > macro.parameters.size())
      fail(fmt::format("macro '{}' takes not more than {} argument(s)", macro.text,
                       macro.parameters.size()));
    Scope inner{&root_};
    for (const auto& [name, value] : arguments.named) {
      const bool known = std::any_of(macro.parameters.begin(), macro.parameters.end(),
                                     [&wanted = name](const auto& p) { return p.first == wanted; });
      if (!known) fail(fmt::format("macro '{}' takes no keyword argument '{}'", macro.text, name));
    }
    for (size_t i = 0; i < macro.parameters.size(); i++) {
      const auto& [name, otherwise] = macro.parameters[i];
      const Value* given = arguments.find(i, name);
      inner.names[name] =
          given       ? *given
          : otherwise ? evaluate(*otherwise, inner)
                      : Value(Undefined{fmt::format("parameter '{}' was not provided", name)});
    }
    std::string out;
    block(macro.body, inner, out);
    calls_--;
    return out;
  }

  Value evaluate(const Expression& e, Scope& scope) {
    step(e.line);
    const auto item = [&](size_t i) { return evaluate(*e.items[i], scope); };
    switch (e.kind) {
      case Expression::kLiteral:
        return e.value;
      case Expression::kName: {
        const Value* value = scope.find(e.text);
        return value ? *value : Value(Undefined{fmt::format("'{}' is undefined", e.text)});
      }
      case Expression::kList:
      case Expression::kTuple: {
        List items;
        for (size_t i = 0; i < e.items.size(); i++) items.push_back(item(i));
        return Value::list(std::move(items), e.kind == Expression::kTuple);
      }
      case Expression::kDict:
        return dict(e, scope);
      case Expression::kMember:
        return member(item(0), e.text);
      case Expression::kSubscript:
        return subscript(item(0), item(1));
      case Expression::kSlice: {
        const auto part = [&](size_t i) { return e.items[i] ? item(i) : Value(); };
        return slice(charged(item(0)), part(1), part(2), part(3));
      }
      case Expression::kCall:
        return charged(call(e, scope));
      case Expression::kFilter:
        return charged(apply_filter(e.text, charged(item(0)), arguments(e, scope)));
      case Expression::kTest:
        return apply_test(e.text, item(0), arguments(e, scope));
      case Expression::kUnary:
        return unary(e.text, item(0));
      case Expression::kBinary:
        return binary(e, scope);
      case Expression::kCompare:
        return compare(e, scope);
      case Expression::kChoice:
        if (item(1).truth()) return item(0);
        return e.items[2] ? item(2)
                          : Value(Undefined{"the condition was false and there is no else"});
    }
    return {};
  }

  Value dict(const Expression& e, Scope& scope) {
    Dict members;
    for (size_t i = 0; i < e.items.size(); i += 2) {
      const Value key = evaluate(*e.items[i], scope);
      if (!key.text()) throw Problem{"keys that are not text are not supported", true};
      Value value = evaluate(*e.items[i + 1], scope);
      const auto held = std::find_if(members.begin(), members.end(),
                                     [&](const auto& m) { return m.first == *key.text(); });
      if (held != members.end())
        held->second = std::move(value);
      else
        members.emplace_back(*key.text(), std::move(value));
    }
    return Value::dict(std::move(members));
  }

  static Value member(const Value& value, const std::string& name) {
    if (const auto* undefined = value.as<Undefined>()) fail(undefined->what);
    const Value* found = value.member(name);
    return found ? *found : Value(missing(value, name));
  }

  Value unary(const std::string& op, const Value& value) {
    if (op == "not") return !value.truth();
    if (const auto* undefined = value.as<Undefined>()) fail(undefined->what);
    if (!value.is_number())
      fail(fmt::format("bad operand type for unary {}: '{}'", op, value.type()));
    return arithmetic(op, 0, value);
  }

  Value binary(const Expression& e, Scope& scope) {
    Value left = evaluate(*e.items[0], scope);
    if (e.text == "and") return left.truth() ? evaluate(*e.items[1], scope) : left;
    if (e.text == "or") return left.truth() ? left : evaluate(*e.items[1], scope);
    const Value right = evaluate(*e.items[1], scope);
    Value out = e.text == "~" ? Value(left.str() + right.str()) : arithmetic(e.text, left, right);
    charged(out);
    if (out.text() && out.text()->size() > kMostText) fail("the text grows too long");
    return out;
  }

  Value compare(const Expression& e, Scope& scope) {
    Value left = evaluate(*e.items[0], scope);
    for (size_t i = 0; i < e.operators.size(); i++) {
      Value right = evaluate(*e.items[i + 1], scope);
      if (!holds(e.operators[i], left, right)) return false;
      left = std::move(right);
    }
    return true;
  }

  static bool holds(const std::string& op, const Value& left, const Value& right) {
    if (op == "==") return equal(left, right);
    if (op == "!=") return !equal(left, right);
    if (op == "in") return contains(right, left);
    if (op == "not in") return !contains(right, left);
    for (const Value* side : {&left, &right})
      if (const auto* undefined = side->as<Undefined>()) fail(undefined->what);
    const int found = order(left, right);
    return op == "<" ? found < 0 : op == ">" ? found > 0 : op == "<=" ? found <= 0 : found >= 0;
  }

  Arguments arguments(const Expression& e, Scope& scope) {
    Arguments out;
    for (size_t i = 1; i < e.items.size(); i++)
      out.positional.push_back(evaluate(*e.items[i], scope));
    for (const auto& [name, value] : e.named) out.named.emplace_back(name, evaluate(*value, scope));
    return out;
  }

  Value call(const Expression& e, Scope& scope) {
    const Expression& callee = *e.items[0];
    Value target;
    if (callee.kind == Expression::kMember) {
      const Value object = charged(evaluate(*callee.items[0], scope));
      const Arguments given = arguments(e, scope);
      if (Value out; call_method(object, callee.text, given, out)) return out;
      target = member(object, callee.text);
      if (!target.is_undefined() && target.function()) return (*target.function())(given);
    } else {
      target = evaluate(callee, scope);
      if (target.function()) return (*target.function())(arguments(e, scope));
    }
    if (const auto* undefined = target.as<Undefined>()) fail(undefined->what);
    fail(fmt::format("'{}' object is not callable", target.type()));
  }

  const Block& program_;
  Scope root_;
  int64_t steps_ = 0;
  int calls_ = 0, line_ = 0;
};

Error error_of(const Problem& problem, const std::string& where) {
  return {problem.unsupported ? ErrorCode::kUnsupported : ErrorCode::kInvalidArgument, problem.what,
          where, "the model's chat template does not allow this"};
}

}  // namespace
}  // namespace jinja

struct JinjaTemplate::Program {
  jinja::Block block;
  std::string where;
};

JinjaTemplate::JinjaTemplate(std::unique_ptr<Program> program) : program_(std::move(program)) {}
JinjaTemplate::JinjaTemplate(JinjaTemplate&&) noexcept = default;
JinjaTemplate& JinjaTemplate::operator=(JinjaTemplate&&) noexcept = default;
JinjaTemplate::~JinjaTemplate() = default;

Result<JinjaTemplate> JinjaTemplate::parse(std::string_view text, const std::string& where) {
  try {
    return JinjaTemplate(std::make_unique<Program>(Program{jinja::parse_template(text), where}));
  } catch (const jinja::Problem& problem) {
    Error error = jinja::error_of(problem, where);
    error.hint = "correct the template, or take the model's own";
    return error;
  }
}

Result<std::string> JinjaTemplate::render(const Json& variables) const {
  jinja::Runner runner(program_->block, variables);
  try {
    return runner.run();
  } catch (const jinja::Problem& problem) {
    return jinja::error_of(problem, fmt::format("{}:{}", program_->where, runner.line()));
  }
}

}  // namespace fastserve
