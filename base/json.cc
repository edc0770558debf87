#include "base/json.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <unordered_set>

namespace fastserve {
namespace {

/// Builds a Json from nlohmann's SAX events; stops at a repeated key or too deep a nesting.
class Builder {
 public:
  explicit Builder(size_t depth) : depth_(depth) {}
  Json take() { return std::move(root_); }
  std::string problem;
  size_t position = 0;

  bool null() { return put(Json()); }
  bool boolean(bool value) { return put(Json(value)); }
  bool number_integer(int64_t value) { return put(Json(value)); }
  bool number_unsigned(uint64_t value) { return put(Json(value)); }
  bool number_float(double value, const std::string&) { return put(Json(value)); }
  bool string(std::string& value) { return put(Json(std::move(value))); }
  bool binary(nlohmann::json::binary_t&) { return fail("binary values are not JSON"); }
  bool start_object(size_t) { return open(Json(Json::Object{})); }
  bool start_array(size_t) { return open(Json(Json::Array{})); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& value) {
    if (!keys_.back().insert(value).second) return fail(fmt::format("the key \"{}\" occurs twice", value));
    key_ = std::move(value);
    return true;
  }
  bool parse_error(size_t at, const std::string&, const nlohmann::json::exception& e) {
    position = at;
    std::string_view text = e.what();  // "[json.exception.parse_error.101] parse error at ...: syntax error ..."
    if (const size_t cut = text.find("] "); cut != text.npos) text.remove_prefix(cut + 2);
    problem = text;
    return false;
  }

 private:
  bool fail(std::string what) {
    problem = std::move(what);
    return false;
  }
  bool put(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (open_.back().is_array()) {
      open_.back().as_array().push_back(std::move(value));
    } else {
      const_cast<Json::Object&>(open_.back().as_object()).emplace_back(std::move(key_), std::move(value));
    }
    return true;
  }
  bool open(Json container) {
    if (open_.size() >= depth_) return fail(fmt::format("it nests deeper than {} levels", depth_));
    names_.push_back(std::move(key_));
    keys_.emplace_back();
    open_.push_back(std::move(container));
    return true;
  }
  bool close() {
    Json done = std::move(open_.back());
    key_ = std::move(names_.back());
    open_.pop_back();
    names_.pop_back();
    keys_.pop_back();
    return put(std::move(done));
  }

  size_t depth_;
  Json root_;
  std::string key_;
  std::vector<Json> open_;
  std::vector<std::string> names_;  // the key under which each open container will be put
  std::vector<std::unordered_set<std::string>> keys_;
};

void write(const Json& value, int indent, int level, std::string& out);

void write_string(const std::string& text, std::string& out) {
  out += nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void new_line(int indent, int level, std::string& out) {
  if (indent < 0) return;
  out += '\n';
  out.append(static_cast<size_t>(indent * level), ' ');
}

template <class Items, class WriteItem>
void write_container(const Items& items, char open, char close, int indent, int level,
                     std::string& out, WriteItem write_item) {
  out += open;
  bool first = true;
  for (const auto& item : items) {
    if (!first) out += indent < 0 ? ", " : ",";
    first = false;
    new_line(indent, level + 1, out);
    write_item(item);
  }
  if (!items.empty()) new_line(indent, level, out);
  out += close;
}

void write(const Json& value, int indent, int level, std::string& out) {
  if (value.is_null()) {
    out += "null";
  } else if (value.is_bool()) {
    out += value.as_bool() ? "true" : "false";
  } else if (value.is_int()) {
    out += std::to_string(value.as_int());
  } else if (value.is_number()) {
    const double number = value.as_double();
    out += std::isfinite(number) ? nlohmann::json(number).dump() : "null";  // JSON has no NaN
  } else if (value.is_string()) {
    write_string(value.as_string(), out);
  } else if (value.is_array()) {
    write_container(value.as_array(), '[', ']', indent, level, out,
                    [&](const Json& item) { write(item, indent, level + 1, out); });
  } else {
    write_container(value.as_object(), '{', '}', indent, level, out, [&](const auto& member) {
      write_string(member.first, out);
      out += ": ";
      write(member.second, indent, level + 1, out);
    });
  }
}

Error wrong_type(std::string_view key, const char* wanted) {
  return {ErrorCode::kCorrupt, fmt::format("is not {}", wanted), std::string(key), ""};
}

}  // namespace

Json::Json(uint64_t value) {
  if (value <= INT64_MAX) value_ = static_cast<int64_t>(value);
  else value_ = static_cast<double>(value);
}

bool Json::operator==(const Json& other) const = default;

Json Json::object(std::initializer_list<std::pair<const char*, Json>> members) {
  Object out;
  for (const auto& [key, value] : members) out.emplace_back(key, value);
  return out;
}

Result<Json> Json::parse(std::string_view text, std::string_view where, Limits limits) {
  Builder builder(limits.depth);
  if (nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) return builder.take();
  return Error{ErrorCode::kCorrupt, "is not valid JSON: " + builder.problem, std::string(where),
               "the file may be cut off or not be what its name says"};
}

std::string Json::dump(int indent) const {
  std::string out;
  write(*this, indent, 0, out);
  return out;
}

double Json::as_double() const {
  return is_int() ? static_cast<double>(as_int()) : std::get<double>(value_);
}

const Json* Json::find(std::string_view key) const {
  const auto* members = std::get_if<Object>(&value_);
  if (members == nullptr) return nullptr;
  for (const auto& [name, value] : *members)
    if (name == key) return &value;
  return nullptr;
}

const Json* Json::find_set(std::string_view key) const {
  const Json* member = find(key);
  return member != nullptr && !member->is_null() ? member : nullptr;
}

void Json::set(std::string_view key, Json value) {
  if (is_null()) value_ = Object{};
  for (auto& [name, old] : std::get<Object>(value_))
    if (name == key) {
      old = std::move(value);
      return;
    }
  std::get<Object>(value_).emplace_back(std::string(key), std::move(value));
}

Result<int64_t> Json::int_or(std::string_view key, int64_t fallback) const {
  const Json* member = find_set(key);
  if (member == nullptr) return fallback;
  if (!member->is_int()) return wrong_type(key, "a whole number");
  return member->as_int();
}

Result<double> Json::double_or(std::string_view key, double fallback) const {
  const Json* member = find_set(key);
  if (member == nullptr) return fallback;
  if (!member->is_number()) return wrong_type(key, "a number");
  return member->as_double();
}

Result<bool> Json::bool_or(std::string_view key, bool fallback) const {
  const Json* member = find_set(key);
  if (member == nullptr) return fallback;
  if (!member->is_bool()) return wrong_type(key, "true or false");
  return member->as_bool();
}

Result<std::string> Json::string_or(std::string_view key, std::string_view fallback) const {
  const Json* member = find_set(key);
  if (member == nullptr) return std::string(fallback);
  if (!member->is_string()) return wrong_type(key, "a string");
  return member->as_string();
}

}  // namespace fastserve
