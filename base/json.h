// JSON values: parsed with limits, written compactly or indented. nlohmann-json stays in json.cc.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/result.h"

namespace fastserve {

/// A JSON value. Objects keep the order of their keys; a key seen twice is refused by parse().
class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;

  struct Limits {
    size_t depth = 128;  ///< nested arrays and objects
  };

  Json() = default;  ///< null
  Json(std::nullptr_t) {}
  Json(bool value) : value_(value) {}
  Json(int value) : value_(int64_t{value}) {}
  Json(unsigned value) : value_(int64_t{value}) {}
  Json(int64_t value) : value_(value) {}
  Json(uint64_t value);  ///< above 2^63-1 it becomes a double
  Json(double value) : value_(value) {}
  Json(float value) : value_(double{value}) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(std::string_view value) : value_(std::string(value)) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}
  template <class T>
  static Json array_of(const T& items) {
    Array out;
    for (const auto& item : items) out.emplace_back(item);
    return out;
  }
  static Json object(std::initializer_list<std::pair<const char*, Json>> members);

  /// `where` names the text in errors, which are kCorrupt with the byte offset.
  static Result<Json> parse(std::string_view text, std::string_view where, Limits limits);
  static Result<Json> parse(std::string_view text, std::string_view where) {
    return parse(text, where, Limits{});
  }
  /// indent < 0: one line. Strings that are not UTF-8 get U+FFFD for the bad bytes.
  std::string dump(int indent = -1) const;

  bool is_null() const { return value_.index() == 0; }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_int() const { return std::holds_alternative<int64_t>(value_); }
  bool is_number() const { return is_int() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }

  // Each requires the matching is_...().
  bool as_bool() const { return std::get<bool>(value_); }
  int64_t as_int() const { return std::get<int64_t>(value_); }
  double as_double() const;
  const std::string& as_string() const { return std::get<std::string>(value_); }
  const Array& as_array() const { return std::get<Array>(value_); }
  Array& as_array() { return std::get<Array>(value_); }
  const Object& as_object() const { return std::get<Object>(value_); }

  /// The member of an object; nullptr when absent or when this is no object.
  const Json* find(std::string_view key) const;
  /// Like find, but a null member counts as absent.
  const Json* find_set(std::string_view key) const;
  /// Sets a member of an object (a null value becomes an object first).
  void set(std::string_view key, Json value);

  // Members by type: the fallback when absent or null, kCorrupt naming the key when of another type.
  Result<int64_t> int_or(std::string_view key, int64_t fallback) const;
  Result<double> double_or(std::string_view key, double fallback) const;
  Result<bool> bool_or(std::string_view key, bool fallback) const;
  Result<std::string> string_or(std::string_view key, std::string_view fallback) const;

  bool operator==(const Json& other) const;  // defaulted in json.cc: nvcc wants Json complete for it

 private:
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

}  // namespace fastserve
