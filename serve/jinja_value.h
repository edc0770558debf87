// The values of a chat template: Python's, as far as templates use them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/json.h"

namespace fastserve::jinja {

/// What stops a template. Thrown inside these files only; JinjaTemplate turns it into an Error.
struct Problem {
  std::string what;
  bool unsupported = false;
};
[[noreturn]] void fail(std::string what);

class Value;
using List = std::vector<Value>;
using Dict = std::vector<std::pair<std::string, Value>>;  ///< in order of insertion

struct Arguments {
  List positional;
  Dict named;
  /// The argument at `index` or called `name`; nullptr when it was not given.
  const Value* find(size_t index, std::string_view name) const;
};
using Function = std::function<Value(const Arguments&)>;

/// A name or a member that does not exist: empty in text, false, and an error in most other places.
struct Undefined {
  std::string what;  ///< "'x' is undefined"
};
struct None {};
struct Sequence {
  std::shared_ptr<const List> items;
  bool tuple = false;
};
/// A dict; a namespace is one that may be changed.
struct Mapping {
  std::shared_ptr<Dict> items;
  bool is_namespace = false;
};

class Value {
 public:
  Value() : held_(None{}) {}
  Value(Undefined undefined) : held_(std::move(undefined)) {}
  Value(bool truth) : held_(truth) {}
  Value(int64_t number) : held_(number) {}
  Value(int number) : held_(int64_t{number}) {}
  Value(double number) : held_(number) {}
  Value(std::string text) : held_(std::move(text)) {}
  Value(std::string_view text) : held_(std::string(text)) {}
  Value(const char* text) : held_(std::string(text)) {}
  Value(Mapping mapping) : held_(std::move(mapping)) {}
  Value(Function function) : held_(std::make_shared<const Function>(std::move(function))) {}
  static Value list(List items, bool tuple = false);
  static Value dict(Dict items, bool is_namespace = false);
  static Value from_json(const Json& json);

  template <class T>
  const T* as() const {
    return std::get_if<T>(&held_);
  }
  bool is_undefined() const { return as<Undefined>() != nullptr; }
  bool is_none() const { return as<None>() != nullptr; }
  bool is_number() const { return as<int64_t>() || as<double>() || as<bool>(); }
  const std::string* text() const { return as<std::string>(); }
  const List* list() const;  ///< of a list or a tuple
  const Dict* dict() const;  ///< of a dict or a namespace
  const Function* function() const;
  Dict* changeable() const;  ///< of a namespace

  bool truth() const;
  double number() const;     ///< of a number
  std::string type() const;  ///< as Python calls it
  std::string str() const;   ///< as print writes it
  std::string repr() const;  ///< as it looks inside a list
  std::string to_json(int64_t indent = -1, bool sorted = false) const;
  /// The items that a loop sees: characters of a string, keys of a dict, nothing of an undefined.
  List iterate() const;
  int64_t length() const;
  const Value* member(std::string_view key) const;  ///< of a dict; nullptr when absent

 private:
  std::variant<Undefined, None, bool, int64_t, double, std::string, Sequence, Mapping,
               std::shared_ptr<const Function>>
      held_;
};

bool equal(const Value& a, const Value& b);
/// Before (-1), same (0) or behind (1); fails for values that have no order.
int order(const Value& a, const Value& b);
bool contains(const Value& container, const Value& item);

/// The characters of UTF-8 text (well formed or not), one string each.
std::vector<std::string_view> characters(std::string_view text);
/// `text` without what Python's strip() takes off: blanks, or any of `set`.
std::string_view strip(std::string_view text, bool left, bool right, const std::string* set);

int64_t whole(const Value& value);  ///< of an int or a bool; fails for others
/// left op right for + - * / // % **.
Value arithmetic(const std::string& op, const Value& left, const Value& right);
Value slice(const Value& value, const Value& from, const Value& to, const Value& by);
Value subscript(const Value& value, const Value& key);
Value range(const Arguments& arguments);  ///< range(to), range(from, to), range(from, to, by)
Undefined missing(const Value& value, const std::string& name);

/// What `| name(arguments)` makes of `value`.
Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments);
/// `value is name(arguments)`.
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments);
/// value.name(arguments) for the methods of str, dict and list; false when there is none.
bool call_method(const Value& value, const std::string& name, const Arguments& arguments,
                 Value& out);

}  // namespace fastserve::jinja
