#include "model/tokenizer/vocabulary.h"

#include <fmt/format.h>

namespace fastserve {
namespace {

/// Ids this far beyond the number of tokens would make tables mostly of holes.
constexpr int64_t kMostHoles = 1 << 20;

}  // namespace

Result<Vocabulary> Vocabulary::parse(const Section& tokens) {
  if (!tokens.json.is_object()) return tokens.corrupt("is not an object");
  const Json::Object& members = tokens.json.as_object();
  const int64_t most = static_cast<int64_t>(members.size()) + kMostHoles;
  int64_t end = 0;
  for (const auto& [token, id] : members) {
    if (!id.is_int() || id.as_int() < 0 || id.as_int() >= most)
      return tokens.corrupt(
          fmt::format("the id of \"{}\" is not a whole number from 0 to {}", token, most - 1));
    end = std::max(end, id.as_int() + 1);
  }
  Vocabulary vocabulary;
  vocabulary.texts_.resize(static_cast<size_t>(end));
  vocabulary.present_.resize(static_cast<size_t>(end));
  vocabulary.ids_.reserve(members.size());
  for (const auto& [token, id] : members) {
    const auto at = static_cast<size_t>(id.as_int());
    if (vocabulary.present_[at] != 0)
      return tokens.corrupt(
          fmt::format("\"{}\" and \"{}\" have the same id {}", vocabulary.texts_[at], token, at));
    vocabulary.present_[at] = 1;
    vocabulary.texts_[at] = token;
    vocabulary.ids_.emplace(vocabulary.texts_[at], static_cast<int32_t>(at));
  }
  return vocabulary;
}

std::optional<int32_t> Vocabulary::id(std::string_view token) const {
  const auto found = ids_.find(token);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

}  // namespace fastserve
