#include "cluster/access_role.h"

#include <array>

namespace fastserve {
namespace {

constexpr std::array kNames = {"read", "run", "admin"};

}  // namespace

const char* access_role_name(AccessRole role) {
  const auto at = static_cast<size_t>(role);
  FS_CHECK(at < kNames.size());
  return kNames[at];
}

Result<AccessRole> parse_access_role(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); i++)
    if (name == kNames[i]) return static_cast<AccessRole>(i);
  return Error{ErrorCode::kInvalidArgument, "is no role", std::string(name),
               "roles are read, run and admin"};
}

}  // namespace fastserve
