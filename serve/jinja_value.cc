#include "serve/jinja_value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace fastserve::jinja {
namespace {

/// repr(float)
std::string float_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  std::string text = fmt::format("{}", number);
  if (text.find_first_of(".e") == text.npos) text += ".0";
  return text;
}

std::string quoted(std::string_view text) {
  const bool doubled = text.find('\'') != text.npos && text.find('"') == text.npos;
  const char quote = doubled ? '"' : '\'';
  std::string out(1, quote);
  for (const char c : text) {
    if (c == quote || c == '\\')
      out += {'\\', c};
    else if (c == '\n')
      out += "\\n";
    else if (c == '\r')
      out += "\\r";
    else if (c == '\t')
      out += "\\t";
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    else
      out += c;
  }
  return out + quote;
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    constexpr std::string_view kShort = "\"\\\b\f\n\r\t", kNames = "\"\\bfnrt";
    const size_t at = kShort.find(c);
    if (at != kShort.npos)
      out += {'\\', kNames[at]};
    else if (static_cast<unsigned char>(c) < 0x20)
      out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    else
      out += c;
  }
  return out + '"';
}

/// json.dumps(value, ensure_ascii=False, indent=indent)
class JsonWriter {
 public:
  JsonWriter(int64_t indent, bool sorted) : indent_(indent), sorted_(sorted) {}

  std::string write(const Value& value, int64_t depth = 0) {
    if (const std::string* text = value.text()) return json_string(*text);
    if (const List* list = value.list()) {
      std::vector<std::string> parts;
      for (const Value& item : *list) parts.push_back(write(item, depth + 1));
      return bracket('[', parts, ']', depth);
    }
    if (const Dict* dict = value.dict()) {
      Dict items = *dict;
      if (sorted_)
        std::stable_sort(items.begin(), items.end(),
                         [](const auto& a, const auto& b) { return a.first < b.first; });
      std::vector<std::string> parts;
      for (const auto& [key, item] : items)
        parts.push_back(fmt::format("{}: {}", json_string(key), write(item, depth + 1)));
      return bracket('{', parts, '}', depth);
    }
    return scalar(value);
  }

 private:
  static std::string scalar(const Value& value) {
    if (value.is_none()) return "null";
    if (const bool* truth = value.as<bool>()) return *truth ? "true" : "false";
    if (const double* number = value.as<double>()) {
      if (std::isnan(*number)) return "NaN";
      if (std::isinf(*number)) return *number < 0 ? "-Infinity" : "Infinity";
      return float_text(*number);
    }
    if (value.is_number()) return value.str();
    fail(fmt::format("Object of type {} is not JSON serializable", value.type()));
  }
  std::string bracket(char open, const std::vector<std::string>& parts, char close, int64_t depth) {
    if (parts.empty()) return {open, close};
    std::string out(1, open);
    const auto line = [&](int64_t level) {
      if (indent_ >= 0) out.append(1, '\n').append(static_cast<size_t>(indent_ * level), ' ');
    };
    for (size_t i = 0; i < parts.size(); i++) {
      if (i > 0) out += indent_ >= 0 ? "," : ", ";
      line(depth + 1);
      out += parts[i];
    }
    line(depth);
    return out + close;
  }

  int64_t indent_;
  bool sorted_;
};

size_t character_length(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  const size_t length = lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  return std::min(length, text.size());
}

/// Python's str.isspace() for one character.
bool is_blank(std::string_view character) {
  if (character.size() == 1) {
    const char c = character[0];
    return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f);
  }
  if (character == "\u0085" || character == "\u00a0" || character == "\u1680") return true;
  if (character >= "\u2000" && character <= "\u200a" && character.size() == 3) return true;
  return character == "\u2028" || character == "\u2029" || character == "\u202f" ||
         character == "\u205f" || character == "\u3000";
}

}  // namespace

void fail(std::string what) { throw Problem{std::move(what)}; }

const Value* Arguments::find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named)
    if (key == name) return &value;
  return nullptr;
}

Value Value::list(List items, bool tuple) {
  Value out;
  out.held_ = Sequence{std::make_shared<const List>(std::move(items)), tuple};
  return out;
}

Value Value::dict(Dict items, bool is_namespace) {
  return Mapping{std::make_shared<Dict>(std::move(items)), is_namespace};
}

Value Value::from_json(const Json& json) {
  if (json.is_null()) return {};
  if (json.is_bool()) return json.as_bool();
  if (json.is_int()) return json.as_int();
  if (json.is_number()) return json.as_double();
  if (json.is_string()) return json.as_string();
  if (json.is_array()) {
    List items;
    for (const Json& item : json.as_array()) items.push_back(from_json(item));
    return list(std::move(items));
  }
  Dict members;
  for (const auto& [key, member] : json.as_object()) members.emplace_back(key, from_json(member));
  return dict(std::move(members));
}

const List* Value::list() const {
  const auto* sequence = as<Sequence>();
  return sequence ? sequence->items.get() : nullptr;
}

const Dict* Value::dict() const {
  const auto* mapping = as<Mapping>();
  return mapping ? mapping->items.get() : nullptr;
}

const Function* Value::function() const {
  const auto* function = as<std::shared_ptr<const Function>>();
  return function ? function->get() : nullptr;
}

Dict* Value::changeable() const {
  const auto* mapping = as<Mapping>();
  return mapping && mapping->is_namespace ? mapping->items.get() : nullptr;
}

bool Value::truth() const {
  if (const bool* truth = as<bool>()) return *truth;
  if (is_number()) return number() != 0;
  if (const std::string* held = text()) return !held->empty();
  if (const List* items = list()) return !items->empty();
  if (const auto* mapping = as<Mapping>()) return mapping->is_namespace || !mapping->items->empty();
  return function() != nullptr;
}

double Value::number() const {
  if (const auto* whole = as<int64_t>()) return static_cast<double>(*whole);
  if (const bool* truth = as<bool>()) return *truth ? 1 : 0;
  return *as<double>();
}

std::string Value::type() const {
  static constexpr const char* kNames[] = {"Undefined", "NoneType", "bool", "int",     "float",
                                           "str",       "list",     "dict", "function"};
  if (const auto* sequence = as<Sequence>(); sequence && sequence->tuple) return "tuple";
  if (changeable()) return "Namespace";
  return kNames[held_.index()];
}

std::string Value::str() const {
  if (is_undefined()) return "";
  if (const std::string* held = text()) return *held;
  return repr();
}

std::string Value::repr() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "None";
  if (const bool* truth = as<bool>()) return *truth ? "True" : "False";
  if (const auto* whole = as<int64_t>()) return fmt::format("{}", *whole);
  if (const double* number = as<double>()) return float_text(*number);
  if (const std::string* held = text()) return quoted(*held);
  std::string out;
  if (const auto* sequence = as<Sequence>()) {
    for (const Value& item : *sequence->items)
      out += fmt::format("{}{}", out.empty() ? "" : ", ", item.repr());
    if (!sequence->tuple) return fmt::format("[{}]", out);
    return fmt::format("({}{})", out, sequence->items->size() == 1 ? "," : "");
  }
  if (const Dict* members = dict()) {
    for (const auto& [key, member] : *members)
      out += fmt::format("{}{}: {}", out.empty() ? "" : ", ", quoted(key), member.repr());
    return fmt::format("{{{}}}", out);
  }
  return "<function>";
}

std::string Value::to_json(int64_t indent, bool sorted) const {
  return JsonWriter(indent, sorted).write(*this);
}

List Value::iterate() const {
  if (const List* items = list()) return *items;
  List out;
  if (const Dict* members = dict(); members && !changeable()) {
    for (const auto& [key, member] : *members) out.emplace_back(key);
  } else if (const std::string* held = text()) {
    for (const std::string_view character : characters(*held)) out.emplace_back(character);
  } else if (!is_undefined()) {
    fail(fmt::format("'{}' object is not iterable", type()));
  }
  return out;
}

int64_t Value::length() const {
  if (is_undefined()) return 0;
  if (const List* items = list()) return static_cast<int64_t>(items->size());
  if (const Dict* members = dict()) return static_cast<int64_t>(members->size());
  if (const std::string* held = text()) return static_cast<int64_t>(characters(*held).size());
  fail(fmt::format("object of type '{}' has no len()", type()));
}

const Value* Value::member(std::string_view key) const {
  const Dict* members = dict();
  if (members == nullptr) return nullptr;
  for (const auto& [name, value] : *members)
    if (name == key) return &value;
  return nullptr;
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    const auto *i = a.as<int64_t>(), *j = b.as<int64_t>();
    return i && j ? *i == *j : a.number() == b.number();
  }
  if (const std::string* text = a.text()) return b.text() && *text == *b.text();
  if (const List* items = a.list()) {
    const List* others = b.list();
    return others && a.type() == b.type() && items->size() == others->size() &&
           std::equal(items->begin(), items->end(), others->begin(), equal);
  }
  if (const Dict* members = a.dict()) {
    const Dict* others = b.dict();
    return others && members->size() == others->size() &&
           std::all_of(members->begin(), members->end(), [&](const auto& member) {
             const Value* other = b.member(member.first);
             return other && equal(member.second, *other);
           });
  }
  return a.type() == b.type() && a.function() == b.function();
}

int order(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number())
    return a.number() < b.number() ? -1 : a.number() > b.number() ? 1 : 0;
  if (a.text() && b.text()) {
    const int found = a.text()->compare(*b.text());
    return found < 0 ? -1 : found > 0 ? 1 : 0;
  }
  if (a.list() && b.list()) {
    const List &left = *a.list(), &right = *b.list();
    for (size_t i = 0; i < std::min(left.size(), right.size()); i++)
      if (!equal(left[i], right[i])) return order(left[i], right[i]);
    return left.size() < right.size() ? -1 : left.size() > right.size() ? 1 : 0;
  }
  fail(fmt::format("values of the types '{}' and '{}' have no order", a.type(), b.type()));
}

bool contains(const Value& container, const Value& item) {
  if (const std::string* text = container.text()) {
    if (item.text() == nullptr)
      fail(fmt::format("'in <string>' requires string as left operand, not {}", item.type()));
    return text->find(*item.text()) != text->npos;
  }
  if (container.dict()) return item.text() && container.member(*item.text());
  const List items = container.iterate();
  return std::any_of(items.begin(), items.end(),
                     [&](const Value& one) { return equal(one, item); });
}

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> out;
  for (size_t i = 0; i < text.size(); i += out.back().size())
    out.push_back(text.substr(i, character_length(text.substr(i))));
  return out;
}

std::string_view strip(std::string_view text, bool left, bool right, const std::string* set) {
  const std::vector<std::string_view> all = characters(text);
  const auto taken = [&](std::string_view character) {
    return set ? set->find(character) != set->npos : is_blank(character);
  };
  size_t begin = 0, end = all.size();
  while (left && begin < end && taken(all[begin])) text.remove_prefix(all[begin++].size());
  while (right && begin < end && taken(all[end - 1])) text.remove_suffix(all[--end].size());
  return text;
}

}  // namespace fastserve::jinja
