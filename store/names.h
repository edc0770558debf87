// What may be a model's name or tag, and which names a mistyped one may have meant.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace fastserve {

/// kInvalidArgument unless `name` is [A-Za-z0-9][A-Za-z0-9._-]{0,63}.
Status check_name(std::string_view name);
/// A name that is not digits alone, which would be a version.
Status check_tag(std::string_view tag);

/// "did you mean a, b?", or what the store holds when nothing is near.
std::string near_names_hint(std::string_view wanted, const std::vector<std::string>& names);

}  // namespace fastserve
