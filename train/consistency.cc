#include "train/consistency.h"

#include <fmt/format.h>

#include <charconv>

namespace fastserve {

Result<Consistency> Consistency::parse(std::string_view text) {
  const size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  const std::string_view number = colon == text.npos ? "" : text.substr(colon + 1);
  const auto wrong = [&](std::string what, std::string hint) {
    return Error{ErrorCode::kInvalidArgument, std::move(what), "consistency", std::move(hint)};
  };
  if (colon == text.npos && name == "exact") return Consistency{};
  if (colon == text.npos && name == "async") return Consistency{Kind::kAsync, 0};
  if (name != "stale" && name != "local")
    return wrong(fmt::format("is \"{}\"", text), "exact, stale:S, async or local:H");
  const bool local = name == "local";
  const int most = local ? kMostLocal : kMostStale;
  int bound = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), bound);
  if (error != std::errc() || end != number.data() + number.size() || bound < 1 || bound > most)
    return wrong(
        fmt::format("is \"{}\"", text),
        local ? fmt::format("local:H takes 1 to {} steps, as in local:16", most)
              : fmt::format("stale:S takes 1 to {} steps, as in stale:3; for 0 give exact", most));
  return Consistency{local ? Kind::kLocal : Kind::kStale, bound};
}

std::string Consistency::text() const {
  switch (kind) {
    case Kind::kStale:
      return fmt::format("stale:{}", bound);
    case Kind::kAsync:
      return "async";
    case Kind::kLocal:
      return fmt::format("local:{}", bound);
    default:
      return "exact";
  }
}

}  // namespace fastserve
