// Which of the names there are a mistyped one may have meant.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fastserve {

/// Those of `names` that are a few edits from `wanted`, contain it or are contained in it; the
/// nearest first.
std::vector<std::string> near_names(std::string_view wanted, const std::vector<std::string>& names);

}  // namespace fastserve
