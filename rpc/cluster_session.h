// What a client has shown, and what it may do.
#pragma once

#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>

#include "base/clock.h"
#include "cluster/access_role.h"
#include "rpc/cluster_server.h"

namespace fastserve {

/// A token that was let in. Tokens expire and are taken back: the word on it is asked for anew when
/// it is old.
///
/// Threads: any.
class ClusterSession {
 public:
  ClusterSession(std::string token, AccessRole role)
      : token_(std::move(token)), role_(role), checked_(now()) {}

  AccessRole role() const { return role_; }

  /// Of a call that needs `least`.
  Status may(AccessRole least, const char* call) const {
    if (role_ >= least) return {};
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("needs an access token of role {}; this one's is {}", access_role_name(least),
                    access_role_name(role_)),
        call,
        fmt::format("ask for one: fsctl cluster token create --kind {}", access_role_name(least))};
  }

  /// An Error when the token is worth nothing any more. May block.
  Status still_good(const ClusterServer::CheckToken& check, Nanoseconds recheck) {
    const int64_t at = now();
    if (at - checked_.load() < recheck.count()) return {};
    const auto role = check(token_);
    if (!role.ok()) return role.error();
    if (*role < role_)
      return Error{ErrorCode::kInvalidArgument, "allows less than it did", "access token",
                   "connect again"};
    checked_ = at;
    return {};
  }

 private:
  static int64_t now() {
    return Nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  const std::string token_;
  const AccessRole role_;
  std::atomic<int64_t> checked_;
};

}  // namespace fastserve
