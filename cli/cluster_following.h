// What commands do alike that begin a cluster's job and follow it.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "cli/cluster_client.h"

namespace fastserve {

bool has_ended(const ClusterJob& job);

/// False, at once, when the user has interrupted.
bool wait_or_cancel(const CommandLine& line, std::chrono::milliseconds time);

/// How a job is watched, and what is told of it.
struct JobWatch {
  ClusterClient::Watch what;
  std::function<bool(const ClusterJob&)> enough = {};  ///< ends it before the job ends
  std::function<void(const ClusterJob&)> show = {};
  std::function<void(const std::string&)> say = {};  ///< a line: the coordinator is lost
};

/// Watches until the job ends or is `enough`, connecting again when the coordinator is lost for up
/// to two minutes. kCancelled when the user interrupts.
Result<ClusterJob> watch_job(const CommandLine& line, std::unique_ptr<ClusterClient> client,
                             const JobWatch& watch);

/// Asks for a job, and then follows it or, with `detach`, says its id and `state`. The exit code.
int begin_cluster_job(
    const CommandLine& line, bool detach, const char* state,
    const std::function<Result<std::string>(ClusterClient&)>& ask,
    const std::function<int(std::unique_ptr<ClusterClient>, const std::string& id)>& follow);

/// The job is followed no longer, after Ctrl-C or for `why`, and goes on. The exit code.
int tell_unfollowed(const CommandLine& line, const std::string& id, Error why);

}  // namespace fastserve
