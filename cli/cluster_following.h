// What commands do alike that begin a cluster's job and follow it.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "cli/cluster_client.h"

namespace fastserve {

/// How long a lost coordinator may take to come back while its job is followed.
inline constexpr auto kPatience = std::chrono::minutes(2);
/// Whether this is such a loss.
bool may_return(const Error& error);

bool has_ended(const ClusterJob& job);

/// Asks for a job, and then follows it or, with `detach`, says its id and `state`. The exit code.
int begin_cluster_job(
    const CommandLine& line, bool detach, const char* state,
    const std::function<Result<std::string>(ClusterClient&)>& ask,
    const std::function<int(std::unique_ptr<ClusterClient>, const std::string& id)>& follow);

/// The job is followed no longer, after Ctrl-C or for `why`, and goes on. The exit code.
int tell_unfollowed(const CommandLine& line, const std::string& id, Error why);

}  // namespace fastserve
