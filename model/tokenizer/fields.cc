#include "model/tokenizer/fields.h"

#include <fmt/format.h>

#include "model/tokenizer/unicode.h"

namespace fastserve {
namespace {

constexpr const char* kDamaged = "the file may be damaged; fetch or export it again";

template <class T>
Result<T> in_section(Result<T> result, const std::string& where) {
  if (result.ok()) return result;
  Error error = std::move(result).error();
  error.where = where + ": " + error.where;
  error.hint = kDamaged;
  return error;
}

}  // namespace

Error Section::corrupt(std::string what) const {
  return {ErrorCode::kCorrupt, std::move(what), where, kDamaged};
}

Error Section::unsupported(std::string what) const {
  return {ErrorCode::kUnsupported, std::move(what), where,
          "use a byte-level or SentencePiece-style BPE tokenizer"};
}

Result<bool> Section::flag(std::string_view key, bool fallback) const {
  return in_section(json.bool_or(key, fallback), where);
}

Result<int64_t> Section::number(std::string_view key, int64_t fallback) const {
  return in_section(json.int_or(key, fallback), where);
}

Result<std::string> Section::text(std::string_view key, std::string_view fallback) const {
  return in_section(json.string_or(key, fallback), where);
}

Result<std::string> Section::required_text(std::string_view key) const {
  if (json.find_set(key) == nullptr) return corrupt(fmt::format("has no \"{}\"", key));
  return text(key, "");
}

Result<const Json::Array*> Section::required_list(std::string_view key) const {
  const Json* member = json.find_set(key);
  if (member == nullptr) return corrupt(fmt::format("has no \"{}\"", key));
  if (!member->is_array()) return corrupt(fmt::format("\"{}\" is not a list", key));
  return &member->as_array();
}

Result<std::string> Section::character(std::string_view key) const {
  FS_ASSIGN(std::string value, required_text(key));
  if (!is_one_character(value)) return corrupt(fmt::format("\"{}\" is not one character", key));
  return value;
}

}  // namespace fastserve
