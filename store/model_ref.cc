#include <fmt/format.h>

#include <algorithm>

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

/// Edits (insert, delete, replace) from `a` to `b`, case ignored.
size_t edit_distance(std::string_view a, std::string_view b) {
  auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); j++) row[j] = j;
  for (size_t i = 1; i <= a.size(); i++) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); j++) {
      const size_t replaced = diagonal + (lower(a[i - 1]) == lower(b[j - 1]) ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
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
  std::vector<std::pair<size_t, std::string>> near;
  for (const std::string& name : names) {
    const size_t distance = edit_distance(wanted, name);
    const bool part = name.find(wanted) != std::string::npos || wanted.find(name) != wanted.npos;
    if (part || distance <= std::max<size_t>(2, wanted.size() / 3))
      near.emplace_back(distance, name);
  }
  if (near.empty()) return fmt::format("the store holds {}", join(names, 8));
  std::sort(near.begin(), near.end());
  std::vector<std::string> nearest;
  for (auto& [distance, name] : near) nearest.push_back(std::move(name));
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
