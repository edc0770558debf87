// The roles of access tokens by their names.
#pragma once

#include <string_view>

#include "cluster/control.h"

namespace fastserve {

/// "read", "run", "admin"
const char* access_role_name(AccessRole role);
/// kInvalidArgument lists the names there are.
Result<AccessRole> parse_access_role(std::string_view name);

}  // namespace fastserve
