// Jinja's filters.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "model/tokenizer/unicode.h"
#include "serve/jinja_value.h"

namespace fastserve::jinja {
namespace {

/// What apply_filter does once the name is known.
using Filter = Value (*)(const Value& value, const Arguments& arguments);

bool flag(const Arguments& arguments, size_t index, const char* name, bool otherwise = false) {
  const Value* given = arguments.find(index, name);
  return given ? given->truth() : otherwise;
}

std::string text_or(const Arguments& arguments, size_t index, const char* name,
                    const char* otherwise) {
  const Value* given = arguments.find(index, name);
  return given ? given->str() : otherwise;
}

/// a.b or a.0, as an attribute= argument spells it.
Value attribute(Value value, const std::string& path) {
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    int64_t index = 0;
    const auto [stop, error] = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool counts = error == std::errc() && stop == part.data() + part.size();
    value = counts && !value.dict() ? subscript(value, index) : subscript(value, part);
    begin = end + 1;
  }
  return value;
}

std::string capitalised(std::string_view word) {
  const std::vector<std::string_view> all = characters(word);
  if (all.empty()) return "";
  return uppercase_unicode(all[0]) + lowercase_unicode(word.substr(all[0].size()));
}

/// Jinja begins a word behind blanks and - ( { [ <, Python behind whatever is no letter.
std::string title(std::string_view text, bool python) {
  std::string out, word;
  const auto flush = [&] {
    out += capitalised(word);
    word.clear();
  };
  for (const std::string_view character : characters(text)) {
    const bool blank = strip(character, true, false, nullptr).empty();
    const bool letter = lowercase_unicode(character) != uppercase_unicode(character);
    const bool ends =
        python ? !letter
               : blank || (character.size() == 1 &&
                           std::string_view("-({[<").find(character) != std::string_view::npos);
    if (ends) {
      flush();
      out += character;
    } else {
      word += character;
    }
  }
  flush();
  return out;
}

Value to_int(const Value& value, const Arguments& arguments) {
  const Value* given = arguments.find(0, "default");
  const Value otherwise = given ? *given : Value(0);
  if (const double* real = value.as<double>())
    return std::fabs(*real) < 9e18 ? Value(static_cast<int64_t>(*real)) : otherwise;
  if (value.is_number()) return whole(value);
  if (value.text() == nullptr) return otherwise;
  std::string_view text = strip(*value.text(), true, true, nullptr);
  if (text.starts_with('+')) text.remove_prefix(1);
  int64_t number = 0;
  double real = 0;
  const char* end = text.data() + text.size();
  if (const auto read = std::from_chars(text.data(), end, number);
      read.ec == std::errc() && read.ptr == end)
    return number;
  if (const auto read = std::from_chars(text.data(), end, real);
      read.ec == std::errc() && read.ptr == end && std::fabs(real) < 9e18)
    return static_cast<int64_t>(real);
  return otherwise;
}

Value to_float(const Value& value, const Arguments& arguments) {
  if (value.is_number()) return value.number();
  const Value* given = arguments.find(0, "default");
  if (value.text() == nullptr) return given ? *given : Value(0.0);
  std::string_view text = strip(*value.text(), true, true, nullptr);
  if (text.starts_with('+')) text.remove_prefix(1);
  double real = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), real);
  if (error == std::errc() && stop == text.data() + text.size()) return real;
  return given ? *given : Value(0.0);
}

Value round_to(const Value& value, const Arguments& arguments) {
  if (!value.is_number()) fail(fmt::format("cannot round a {}", value.type()));
  const Value* digits = arguments.find(0, "precision");
  const double scale = std::pow(10.0, digits ? static_cast<double>(whole(*digits)) : 0.0);
  const std::string method = text_or(arguments, 1, "method", "common");
  const double scaled = value.number() * scale;
  return (method == "ceil"    ? std::ceil(scaled)
          : method == "floor" ? std::floor(scaled)
                              : std::nearbyint(scaled)) /
         scale;
}

Value join(const Value& value, const Arguments& arguments) {
  const std::string separator = text_or(arguments, 0, "d", "");
  const Value* by = arguments.find(1, "attribute");
  std::string out;
  bool first = true;
  for (const Value& item : value.iterate()) {
    out += (first ? "" : separator) + (by ? attribute(item, by->str()) : item).str();
    first = false;
  }
  return out;
}

Value indent(const Value& value, const Arguments& arguments) {
  const Value* width = arguments.find(0, "width");
  const std::string margin =
      width && width->text()
          ? *width->text()
          : std::string(
                static_cast<size_t>(std::clamp<int64_t>(width ? whole(*width) : 4, 0, 1000)), ' ');
  const bool first = flag(arguments, 1, "first"), blank = flag(arguments, 2, "blank");
  const std::string text = value.str();
  std::string out;
  for (size_t begin = 0, line = 0; begin <= text.size(); line++) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view part = std::string_view(text).substr(begin, end - begin);
    if (line > 0) out += '\n';
    if ((line > 0 || first) && (blank || !part.empty() || (line == 0 && first))) out += margin;
    out += part;
    begin = end + 1;
  }
  return out;
}

/// Items by themselves, or by an attribute, in small letters unless case counts.
Value sorted(const Value& value, const Arguments& arguments) {
  const bool reverse = flag(arguments, 0, "reverse"), cased = flag(arguments, 1, "case_sensitive");
  const Value* by = arguments.find(2, "attribute");
  const auto key = [&](const Value& item) {
    const Value out = by ? attribute(item, by->str()) : item;
    return !cased && out.text() ? Value(lowercase_unicode(*out.text())) : out;
  };
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : value.iterate()) keyed.emplace_back(key(item), item);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? order(b.first, a.first) < 0 : order(a.first, b.first) < 0;
  });
  List out;
  for (auto& [sort_key, item] : keyed) out.push_back(std::move(item));
  return Value::list(std::move(out));
}

Value unique(const Value& value, const Arguments& arguments) {
  const bool cased = flag(arguments, 0, "case_sensitive");
  const Value* by = arguments.find(1, "attribute");
  List out, seen;
  for (const Value& item : value.iterate()) {
    Value key = by ? attribute(item, by->str()) : item;
    if (!cased && key.text()) key = lowercase_unicode(*key.text());
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& one) { return equal(one, key); }))
      continue;
    seen.push_back(std::move(key));
    out.push_back(item);
  }
  return Value::list(std::move(out));
}

Value extreme(const Value& value, bool largest) {
  const List items = value.iterate();
  if (items.empty()) return Undefined{"No aggregated item, sequence was empty."};
  size_t best = 0;
  for (size_t i = 1; i < items.size(); i++) {
    const int found = order(items[i], items[best]);
    if (largest ? found > 0 : found < 0) best = i;
  }
  return items[best];
}

Value sum(const Value& value, const Arguments& arguments) {
  const Value* by = arguments.find(0, "attribute");
  const Value* start = arguments.find(1, "start");
  Value out = start ? *start : Value(0);
  for (const Value& item : value.iterate())
    out = arithmetic("+", out, by ? attribute(item, by->str()) : item);
  return out;
}

/// Arguments without the first `count`.
Arguments behind(const Arguments& arguments, size_t count) {
  Arguments out = arguments;
  out.positional.erase(
      out.positional.begin(),
      out.positional.begin() + static_cast<ptrdiff_t>(std::min(count, out.positional.size())));
  return out;
}

Value map(const Value& value, const Arguments& arguments) {
  List out;
  const Value* by = arguments.positional.empty() ? arguments.find(9, "attribute") : nullptr;
  if (by == nullptr && arguments.positional.empty()) fail("map requires a filter argument");
  const Value* otherwise = arguments.find(9, "default");
  for (const Value& item : value.iterate()) {
    if (by == nullptr) {
      out.push_back(apply_filter(arguments.positional[0].str(), item, behind(arguments, 1)));
      continue;
    }
    Value found = attribute(item, by->str());
    out.push_back(found.is_undefined() && otherwise ? *otherwise : found);
  }
  return Value::list(std::move(out));
}

/// select, reject and their attr forms.
Value chosen(const Value& value, const Arguments& arguments, bool by_attribute, bool keep) {
  if (by_attribute && arguments.positional.empty()) fail("Missing parameter for attribute name");
  const size_t at = by_attribute ? 1 : 0;
  List out;
  for (const Value& item : value.iterate()) {
    const Value tested = by_attribute ? attribute(item, arguments.positional[0].str()) : item;
    const bool passes =
        arguments.positional.size() > at
            ? apply_test(arguments.positional[at].str(), tested, behind(arguments, at + 1))
            : tested.truth();
    if (passes == keep) out.push_back(item);
  }
  return Value::list(std::move(out));
}

Value items_of(const Value& value) {
  Value out;
  if (value.is_undefined()) return Value::list({});
  if (value.dict() == nullptr || !call_method(value, "items", {}, out))
    fail("Can only get item pairs from a mapping.");
  return out;
}

Value dictsort(const Value& value, const Arguments& arguments) {
  const bool by_value = text_or(arguments, 1, "by", "key") == "value";
  Arguments sorting;
  sorting.positional = {flag(arguments, 2, "reverse"), flag(arguments, 0, "case_sensitive"),
                        by_value ? "1" : "0"};
  return sorted(items_of(value), sorting);
}

Value reversed(const Value& value) {
  List items = value.iterate();
  std::reverse(items.begin(), items.end());
  if (!value.text()) return Value::list(std::move(items));
  std::string out;
  for (const Value& character : items) out += *character.text();
  return out;
}

Value edge(const Value& value, bool last) {
  const List items = value.iterate();
  if (items.empty()) return Undefined{"No item, sequence was empty."};
  return last ? items.back() : items.front();
}

Value replace(const Value& value, const Arguments& arguments) {
  Value out;
  if (arguments.positional.size() < 2) fail("replace takes what to replace and by what");
  Arguments texts = arguments;
  for (size_t i = 0; i < 2; i++) texts.positional[i] = texts.positional[i].str();
  call_method(value.str(), "replace", texts, out);
  return out;
}

Value absolute(const Value& value) {
  if (!value.is_number()) fail(fmt::format("bad operand type for abs(): '{}'", value.type()));
  if (const double* real = value.as<double>()) return std::fabs(*real);
  return whole(value) < 0 ? arithmetic("-", 0, value) : Value(whole(value));
}

Value escaped(const Value& value) {
  std::string out;
  for (const char c : value.str()) {
    constexpr std::string_view kMarks = "&<>'\"";
    constexpr const char* kNames[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    if (const size_t at = kMarks.find(c); at != kMarks.npos)
      out += kNames[at];
    else
      out += c;
  }
  return out;
}

Value to_json(const Value& value, const Arguments& arguments) {
  const Value* by = arguments.find(9, "indent");
  const int64_t width = by == nullptr || by->is_none() ? -1 : std::min<int64_t>(whole(*by), 64);
  return value.to_json(width, flag(arguments, 9, "sort_keys"));
}

struct NamedFilter {
  const char* name;
  Filter filter;
};

constexpr NamedFilter kFilters[] = {
    {"abs", [](const Value& v, const Arguments&) { return absolute(v); }},
    {"capitalize", [](const Value& v, const Arguments&) { return Value(capitalised(v.str())); }},
    {"dictsort", dictsort},
    {"e", [](const Value& v, const Arguments&) { return escaped(v); }},
    {"escape", [](const Value& v, const Arguments&) { return escaped(v); }},
    {"first", [](const Value& v, const Arguments&) { return edge(v, false); }},
    {"float", to_float},
    {"indent", indent},
    {"int", to_int},
    {"items", [](const Value& v, const Arguments&) { return items_of(v); }},
    {"join", join},
    {"last", [](const Value& v, const Arguments&) { return edge(v, true); }},
    {"count", [](const Value& v, const Arguments&) { return Value(v.length()); }},
    {"length", [](const Value& v, const Arguments&) { return Value(v.length()); }},
    {"list", [](const Value& v, const Arguments&) { return Value::list(v.iterate()); }},
    {"lower", [](const Value& v, const Arguments&) { return Value(lowercase_unicode(v.str())); }},
    {"map", map},
    {"max", [](const Value& v, const Arguments&) { return extreme(v, true); }},
    {"min", [](const Value& v, const Arguments&) { return extreme(v, false); }},
    {"python title", [](const Value& v, const Arguments&) { return Value(title(v.str(), true)); }},
    {"reject", [](const Value& v, const Arguments& a) { return chosen(v, a, false, false); }},
    {"rejectattr", [](const Value& v, const Arguments& a) { return chosen(v, a, true, false); }},
    {"replace", replace},
    {"reverse", [](const Value& v, const Arguments&) { return reversed(v); }},
    {"round", round_to},
    {"safe", [](const Value& v, const Arguments&) { return v; }},
    {"select", [](const Value& v, const Arguments& a) { return chosen(v, a, false, true); }},
    {"selectattr", [](const Value& v, const Arguments& a) { return chosen(v, a, true, true); }},
    {"sort", sorted},
    {"string", [](const Value& v, const Arguments&) { return Value(v.str()); }},
    {"sum", sum},
    {"title", [](const Value& v, const Arguments&) { return Value(title(v.str(), false)); }},
    {"tojson", to_json},
    {"unique", unique},
    {"upper", [](const Value& v, const Arguments&) { return Value(uppercase_unicode(v.str())); }},
};

Value trim(const Value& value, const Arguments& arguments) {
  const Value* set = arguments.find(0, "chars");
  return strip(value.str(), true, true, set && set->text() ? set->text() : nullptr);
}

Value otherwise(const Value& value, const Arguments& arguments) {
  const Value* other = arguments.find(0, "default_value");
  const bool falls = value.is_undefined() || (flag(arguments, 1, "boolean") && !value.truth());
  return falls ? (other ? *other : Value("")) : value;
}

}  // namespace

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments) {
  if (name == "trim") return trim(value, arguments);
  if (name == "default" || name == "d") return otherwise(value, arguments);
  for (const NamedFilter& known : kFilters)
    if (name == known.name) return known.filter(value, arguments);
  throw Problem{fmt::format("the filter \"{}\" is not supported", name), true};
}

}  // namespace fastserve::jinja
