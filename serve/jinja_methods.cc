// The methods of str, dict and list that change nothing.
#include <fmt/format.h>

#include <algorithm>

#include "model/tokenizer/unicode.h"
#include "serve/jinja_value.h"

namespace fastserve::jinja {
namespace {

const std::string* text_argument(const Arguments& arguments, size_t index, const char* name) {
  const Value* given = arguments.find(index, name);
  if (given == nullptr || given->is_none()) return nullptr;
  if (given->text() == nullptr) fail(fmt::format("expected a str, found {}", given->type()));
  return given->text();
}

const std::string& required_text(const Arguments& arguments, size_t index) {
  const std::string* text = text_argument(arguments, index, "");
  if (text == nullptr) fail("an argument is missing");
  return *text;
}

int64_t number_argument(const Arguments& arguments, size_t index, const char* name,
                        int64_t otherwise) {
  const Value* given = arguments.find(index, name);
  return given == nullptr ? otherwise : whole(*given);
}

/// split() and rsplit() with a separator.
List split_at(std::string_view text, const std::string& separator, int64_t most, bool from_right) {
  if (separator.empty()) fail("empty separator");
  List out;
  while (most-- != 0) {
    const size_t hit = from_right ? text.rfind(separator) : text.find(separator);
    if (hit == text.npos) break;
    if (from_right) {
      out.emplace_back(text.substr(hit + separator.size()));
      text = text.substr(0, hit);
    } else {
      out.emplace_back(text.substr(0, hit));
      text.remove_prefix(hit + separator.size());
    }
  }
  out.emplace_back(text);
  if (from_right) std::reverse(out.begin(), out.end());
  return out;
}

/// split() at blanks.
List split_words(std::string_view text, int64_t most) {
  List out;
  for (text = strip(text, true, false, nullptr); !text.empty();
       text = strip(text, true, false, nullptr)) {
    size_t end = 0;
    for (const std::string_view character : characters(text)) {
      if (strip(character, true, false, nullptr).empty()) break;
      end += character.size();
    }
    if (most-- == 0) end = strip(text, false, true, nullptr).size();
    out.emplace_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return out;
}

List split_lines(std::string_view text, bool keep) {
  List out;
  while (!text.empty()) {
    const size_t end = text.find_first_of("\r\n");
    if (end == text.npos) {
      out.emplace_back(text);
      break;
    }
    const size_t behind = end + (text.substr(end).starts_with("\r\n") ? 2 : 1);
    out.emplace_back(text.substr(0, keep ? behind : end));
    text.remove_prefix(behind);
  }
  return out;
}

std::string replaced(std::string_view text, const std::string& from, const std::string& to,
                     int64_t most) {
  std::string out;
  if (from.empty()) {
    for (const std::string_view character : characters(text)) {
      if (most-- != 0) out += to;
      out += character;
    }
    return most == 0 ? out : out + to;
  }
  for (size_t hit; most-- != 0 && (hit = text.find(from)) != text.npos;) {
    out.append(text.substr(0, hit)).append(to);
    text.remove_prefix(hit + from.size());
  }
  return out.append(text);
}

bool has_end(const std::string& text, const Value& ends, bool front) {
  if (const List* several = ends.list())
    return std::any_of(several->begin(), several->end(),
                       [&](const Value& one) { return has_end(text, one, front); });
  if (ends.text() == nullptr)
    fail(fmt::format("expected a str or a tuple of str, found {}", ends.type()));
  return front ? text.starts_with(*ends.text()) : text.ends_with(*ends.text());
}

bool each_is(const std::string& text, bool (*of)(char)) {
  return !text.empty() && std::all_of(text.begin(), text.end(), of);
}

std::string joined(const std::string& separator, const List& items) {
  std::string out;
  for (size_t i = 0; i < items.size(); i++) {
    if (items[i].text() == nullptr)
      fail(fmt::format("sequence item {}: expected str instance, {} found", i, items[i].type()));
    out += (i > 0 ? separator : "") + *items[i].text();
  }
  return out;
}

/// The index of the first or last hit in characters; -1 without one.
int64_t found_at(const std::string& text, const std::string& wanted, bool last) {
  const size_t hit = last ? text.rfind(wanted) : text.find(wanted);
  if (hit == text.npos) return -1;
  return static_cast<int64_t>(characters(std::string_view(text).substr(0, hit)).size());
}

int64_t count_of(std::string_view text, const std::string& wanted) {
  int64_t count = 0;
  if (wanted.empty()) return static_cast<int64_t>(characters(text).size()) + 1;
  for (size_t hit = 0; (hit = text.find(wanted, hit)) != text.npos; hit += wanted.size()) count++;
  return count;
}

bool text_method(const std::string& text, const std::string& name, const Arguments& a, Value& out) {
  if (name == "strip" || name == "lstrip" || name == "rstrip")
    out = strip(text, name != "rstrip", name != "lstrip", text_argument(a, 0, "chars"));
  else if (name == "split" || name == "rsplit") {
    const std::string* separator = text_argument(a, 0, "sep");
    const int64_t most = number_argument(a, 1, "maxsplit", -1);
    out = Value::list(separator ? split_at(text, *separator, most, name == "rsplit")
                                : split_words(text, most));
  } else if (name == "splitlines") {
    const Value* keep = a.find(0, "keepends");
    out = Value::list(split_lines(text, keep && keep->truth()));
  } else if (name == "replace") {
    out = replaced(text, required_text(a, 0), required_text(a, 1),
                   number_argument(a, 2, "count", -1));
  } else if (name == "startswith" || name == "endswith") {
    if (a.positional.empty()) fail("an argument is missing");
    out = has_end(text, a.positional[0], name == "startswith");
  } else if (name == "removeprefix") {
    const std::string& end = required_text(a, 0);
    out = text.starts_with(end) ? text.substr(end.size()) : text;
  } else if (name == "removesuffix") {
    const std::string& end = required_text(a, 0);
    out = text.ends_with(end) ? text.substr(0, text.size() - end.size()) : text;
  } else if (name == "join") {
    if (a.positional.empty()) fail("an argument is missing");
    out = joined(text, a.positional[0].iterate());
  } else if (name == "find" || name == "rfind") {
    out = found_at(text, required_text(a, 0), name == "rfind");
  } else if (name == "index") {
    const int64_t at = found_at(text, required_text(a, 0), false);
    if (at < 0) fail("substring not found");
    out = at;
  } else if (name == "count") {
    out = count_of(text, required_text(a, 0));
  } else if (name == "isdigit" || name == "isnumeric" || name == "isdecimal") {
    out = each_is(text, [](char c) { return c >= '0' && c <= '9'; });
  } else if (name == "isspace") {
    out = !text.empty() && strip(text, true, false, nullptr).empty();
  } else if (name == "upper" || name == "lower" || name == "title" || name == "capitalize") {
    out = apply_filter(name == "title" ? "python title" : name, text, {});
  } else {
    return false;
  }
  return true;
}

}  // namespace

bool call_method(const Value& value, const std::string& name, const Arguments& a, Value& out) {
  if (const std::string* text = value.text()) return text_method(*text, name, a, out);
  if (const List* list = value.list()) {
    if (name != "index" && name != "count") return false;
    if (a.positional.empty()) fail("an argument is missing");
    const auto same = [&](const Value& item) { return equal(item, a.positional[0]); };
    const auto at = std::find_if(list->begin(), list->end(), same);
    if (name == "index" && at == list->end())
      fail(fmt::format("{} is not in list", a.positional[0].repr()));
    out = name == "index" ? static_cast<int64_t>(at - list->begin())
                          : static_cast<int64_t>(std::count_if(list->begin(), list->end(), same));
    return true;
  }
  const Dict* dict = value.dict();
  if (dict == nullptr || value.changeable()) return false;
  if (name == "get") {
    if (a.positional.empty()) fail("an argument is missing");
    const Value* key = &a.positional[0];
    const Value* found = key->text() ? value.member(*key->text()) : nullptr;
    const Value* otherwise = a.find(1, "default");
    out = found ? *found : otherwise ? *otherwise : Value();
    return true;
  }
  if (name != "items" && name != "keys" && name != "values") return false;
  List items;
  for (const auto& [key, member] : *dict) {
    if (name == "items")
      items.push_back(Value::list({key, member}, true));
    else
      items.push_back(name == "keys" ? Value(key) : member);
  }
  out = Value::list(std::move(items));
  return true;
}

}  // namespace fastserve::jinja
