// Python's operators.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "serve/jinja_value.h"

namespace fastserve::jinja {

Undefined missing(const Value& value, const std::string& name) {
  return {fmt::format("'{} object' has no attribute '{}'", value.type(), name)};
}

int64_t whole(const Value& value) {
  if (const auto* number = value.as<int64_t>()) return *number;
  if (const bool* truth = value.as<bool>()) return *truth ? 1 : 0;
  fail(fmt::format("expected a whole number, found {}", value.type()));
}

namespace {

Value power(int64_t base, int64_t exponent) {
  if (exponent < 0) return std::pow(static_cast<double>(base), static_cast<double>(exponent));
  int64_t out = 1;
  for (; exponent > 0; exponent--)
    if (base == 0 || base == 1)
      return exponent > 0 ? base : out;
    else if (__builtin_mul_overflow(out, base, &out))
      fail("a number is too large");
  return out;
}

Value whole_arithmetic(const std::string& op, int64_t a, int64_t b) {
  int64_t out = 0;
  bool overflow = false;
  if (op == "+") overflow = __builtin_add_overflow(a, b, &out);
  if (op == "-") overflow = __builtin_sub_overflow(a, b, &out);
  if (op == "*") overflow = __builtin_mul_overflow(a, b, &out);
  if (op == "//" || op == "%") {
    overflow = b == -1 && a == INT64_MIN;
    if (!overflow) {
      const int64_t rest = a % b;
      const bool down = rest != 0 && (rest < 0) != (b < 0);  // Python rounds towards -infinity
      out = op == "%" ? rest + (down ? b : 0) : a / b - down;
    }
  }
  if (overflow) fail("a number is too large");
  return out;
}

Value number_arithmetic(const std::string& op, const Value& left, const Value& right) {
  if ((op == "/" || op == "//" || op == "%") && right.number() == 0) fail("division by zero");
  if (left.as<double>() == nullptr && right.as<double>() == nullptr && op != "/")
    return op == "**" ? power(whole(left), whole(right))
                      : whole_arithmetic(op, whole(left), whole(right));
  const double a = left.number(), b = right.number();
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "/") return a / b;
  if (op == "//") return std::floor(a / b);
  if (op == "**") return std::pow(a, b);
  return a - b * std::floor(a / b);
}

Value repeat(const Value& value, int64_t times) {
  const int64_t length = value.text() ? static_cast<int64_t>(value.text()->size())
                                      : static_cast<int64_t>(value.list()->size());
  if (times > 0 && length > 0 && times > static_cast<int64_t>(1 << 20) / length)
    fail("a repetition is too long");
  List items;
  std::string text;
  for (int64_t i = 0; i < times; i++) {
    if (value.text())
      text += *value.text();
    else
      items.insert(items.end(), value.list()->begin(), value.list()->end());
  }
  if (value.text()) return text;
  return Value::list(std::move(items), value.as<Sequence>()->tuple);
}

}  // namespace

Value arithmetic(const std::string& op, const Value& left, const Value& right) {
  for (const Value* side : {&left, &right})
    if (const auto* undefined = side->as<Undefined>()) fail(undefined->what);
  if (left.is_number() && right.is_number()) return number_arithmetic(op, left, right);
  if (op == "+" && left.text() && right.text()) return *left.text() + *right.text();
  if (op == "+" && left.list() && left.type() == right.type()) {
    List items = *left.list();
    items.insert(items.end(), right.list()->begin(), right.list()->end());
    return Value::list(std::move(items), left.as<Sequence>()->tuple);
  }
  if (op == "*" && (left.text() || left.list()) && right.is_number() && !right.as<double>())
    return repeat(left, whole(right));
  if (op == "*" && (right.text() || right.list()) && left.is_number() && !left.as<double>())
    return repeat(right, whole(left));
  fail(fmt::format("unsupported operand types for {}: '{}' and '{}'", op, left.type(),
                   right.type()));
}

Value slice(const Value& value, const Value& from, const Value& to, const Value& by) {
  const List items = value.iterate();
  const auto size = static_cast<int64_t>(items.size());
  const int64_t step = by.is_none() ? 1 : whole(by);
  if (step == 0) fail("slice step cannot be zero");
  const auto bound = [&](const Value& at, int64_t otherwise) {
    if (at.is_none()) return otherwise;
    int64_t index = whole(at);
    if (index < 0) index += size;
    return std::clamp<int64_t>(index, step > 0 ? 0 : -1, step > 0 ? size : size - 1);
  };
  const int64_t begin = bound(from, step > 0 ? 0 : size - 1);
  const int64_t end = bound(to, step > 0 ? size : -1);
  List out;
  for (int64_t i = begin; step > 0 ? i < end : i > end; i += step)
    out.push_back(items[static_cast<size_t>(i)]);
  if (!value.text()) return Value::list(std::move(out), value.type() == "tuple");
  std::string text;
  for (const Value& character : out) text += *character.text();
  return text;
}

Value subscript(const Value& value, const Value& key) {
  if (const auto* undefined = value.as<Undefined>()) fail(undefined->what);
  if (value.dict()) {
    const Value* member = key.text() ? value.member(*key.text()) : nullptr;
    return member ? *member : Value(missing(value, key.str()));
  }
  if (!(value.list() || value.text()) || !key.is_number() || key.as<double>())
    return missing(value, key.str());
  const List items = value.list() ? List() : value.iterate();
  const List& all = value.list() ? *value.list() : items;
  const auto size = static_cast<int64_t>(all.size());
  const int64_t index = whole(key), at = index < 0 ? index + size : index;
  if (at < 0 || at >= size)
    return Undefined{fmt::format("{} object has no element {}", value.type(), index)};
  return all[static_cast<size_t>(at)];
}

Value range(const Arguments& a) {
  if (a.positional.empty() || a.positional.size() > 3) fail("range takes one to three numbers");
  const bool one = a.positional.size() == 1;
  const int64_t from = one ? 0 : whole(a.positional[0]), to = whole(a.positional[one ? 0 : 1]);
  const int64_t step = a.positional.size() == 3 ? whole(a.positional[2]) : 1;
  if (step == 0) fail("range() arg 3 must not be zero");
  List items;
  for (int64_t i = from; step > 0 ? i < to : i > to; i += step) {
    if (items.size() >= 100'000) fail("a range is too long");
    items.emplace_back(i);
  }
  return Value::list(std::move(items));
}

}  // namespace fastserve::jinja
