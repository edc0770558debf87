#include <fmt/format.h>

#include <algorithm>

#include "base/spelling.h"
#include "store/names.h"
#include "store/store.h"

namespace fastserve {
namespace {

bool is_letter_or_digit(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

bool all_digits(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

std::string join(const std::vector<std::string>& names, size_t most) {
  std::string text;
  for (size_t i = 0; i < names.size() && i < most; i++) text += (i ? ", " : "") + names[i];
  if (names.size() > most) text += fmt::format(" and {} more", names.size() - most);
  return text;
}

}  // namespace

Status check_name(std::string_view name) {
  const bool good = !name.empty() && name.size() <= 64 && is_letter_or_digit(name[0]) &&
                    std::all_of(name.begin(), name.end(), [](char c) {
                      return is_letter_or_digit(c) || c == '.' || c == '_' || c == '-';
                    });
  if (good) return {};
  return Error{ErrorCode::kInvalidArgument, "is not a model name", fmt::format("\"{}\"", name),
               "use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"};
}

Status check_tag(std::string_view tag) {
  if (check_name(tag).ok() && !all_digits(tag)) return {};
  return Error{ErrorCode::kInvalidArgument, "is not a tag", fmt::format("\"{}\"", tag),
               "use 1 to 64 letters, digits, '.', '_' or '-', not digits alone"};
}

std::string near_names_hint(std::string_view wanted, const std::vector<std::string>& names) {
  if (names.empty()) return "the store is empty: train or import a model first";
  const std::vector<std::string> nearest = near_names(wanted, names);
  if (nearest.empty()) return fmt::format("the store holds {}", join(names, 8));
  return fmt::format("did you mean {}?", join(nearest, 3));
}

std::string ModelRef::text() const {
  if (!tag.empty()) return fmt::format("{}@{}", name, tag);
  return version == 0 ? name : fmt::format("{}@{}", name, version);
}

Result<ModelRef> ModelRef::parse(std::string_view text) {
  const size_t at = text.find('@');
  ModelRef ref;
  ref.name = std::string(text.substr(0, at));
  FS_TRY(check_name(ref.name));
  if (at == text.npos) return ref;
  const std::string_view rest = text.substr(at + 1);
  if (!all_digits(rest)) {
    FS_TRY(check_tag(rest));
    ref.tag = std::string(rest);
    return ref;
  }
  if (rest.size() <= 15)
    for (const char c : rest) ref.version = ref.version * 10 + static_cast<uint64_t>(c - '0');
  if (ref.version == 0)
    return Error{ErrorCode::kInvalidArgument, "is not a version", fmt::format("\"{}\"", text),
                 "versions count from 1, as in name@1"};
  return ref;
}

}  // namespace fastserve
