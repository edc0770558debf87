// Jinja's tests: what stands behind "is".
#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>

#include "model/tokenizer/unicode.h"
#include "serve/jinja_value.h"

namespace fastserve::jinja {
namespace {

bool remainder_is(const Value& value, int64_t by, int64_t rest) {
  return whole(arithmetic("%", value, by)) == rest;
}

const Value& operand(const Arguments& arguments) {
  if (arguments.positional.empty()) fail("the test needs an argument");
  return arguments.positional[0];
}

bool compares(const std::string& name, const Value& value, const Arguments& arguments, bool& out) {
  const auto is = [&](std::initializer_list<const char*> names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (is({"eq", "equalto", "=="}))
    out = equal(value, operand(arguments));
  else if (is({"ne", "!="}))
    out = !equal(value, operand(arguments));
  else if (is({"lt", "lessthan", "<"}))
    out = order(value, operand(arguments)) < 0;
  else if (is({"le", "<="}))
    out = order(value, operand(arguments)) <= 0;
  else if (is({"gt", "greaterthan", ">"}))
    out = order(value, operand(arguments)) > 0;
  else if (is({"ge", ">="}))
    out = order(value, operand(arguments)) >= 0;
  else if (is({"in"}))
    out = contains(operand(arguments), value);
  else if (is({"sameas"}))
    out = value.type() == operand(arguments).type() && equal(value, operand(arguments));
  else
    return false;
  return true;
}

}  // namespace

bool apply_test(const std::string& name, const Value& value, const Arguments& arguments) {
  if (bool out = false; compares(name, value, arguments, out)) return out;
  if (name == "defined") return !value.is_undefined();
  if (name == "undefined") return value.is_undefined();
  if (name == "none") return value.is_none();
  if (name == "string") return value.text() != nullptr;
  if (name == "boolean") return value.as<bool>() != nullptr;
  if (name == "integer") return value.as<int64_t>() != nullptr;
  if (name == "float") return value.as<double>() != nullptr;
  if (name == "number") return value.is_number();
  if (name == "true") return value.as<bool>() && *value.as<bool>();
  if (name == "false") return value.as<bool>() && !*value.as<bool>();
  if (name == "mapping") return value.dict() != nullptr && !value.changeable();
  if (name == "sequence")
    return value.list() || value.dict() || value.text() || value.is_undefined();
  if (name == "iterable")
    return value.list() || value.dict() || value.text() || value.is_undefined();
  if (name == "callable") return value.function() != nullptr;
  if (name == "odd") return remainder_is(value, 2, 1);
  if (name == "even") return remainder_is(value, 2, 0);
  if (name == "divisibleby") return remainder_is(value, whole(operand(arguments)), 0);
  if (name == "lower") return value.str() == lowercase_unicode(value.str());
  if (name == "upper") return value.str() == uppercase_unicode(value.str());
  throw Problem{fmt::format("the test \"{}\" is not supported", name), true};
}

}  // namespace fastserve::jinja
