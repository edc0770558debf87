#include "cli/cluster_following.h"

#include <fmt/format.h>

namespace fastserve {

bool may_return(const Error& error) {
  return error.code == ErrorCode::kUnavailable || error.code == ErrorCode::kDeadlineExceeded;
}

bool has_ended(const ClusterJob& job) {
  return job.state == "finished" || job.state == "failed" || job.state == "cancelled";
}

int begin_cluster_job(
    const CommandLine& line, bool detach, const char* state,
    const std::function<Result<std::string>(ClusterClient&)>& ask,
    const std::function<int(std::unique_ptr<ClusterClient>, const std::string& id)>& follow) {
  auto client = open_cluster(line);
  if (!client.ok()) return fail(line, client.error());
  auto id = ask(**client);
  if (!id.ok()) {
    Error error = id.error();
    if (error.code == ErrorCode::kCancelled) error.hint = "it may have begun: fsctl jobs list";
    return fail(line, error);
  }
  if (detach)
    return finish(line, Json::object({{"id", *id}, {"state", state}}),
                  [&] { fmt::print("job {}\n", *id); });
  return follow(std::move(*client), *id);
}

int tell_unfollowed(const CommandLine& line, const std::string& id, Error why) {
  if (line.cancel.raised()) {
    if (line.json) fmt::print("{}\n", Json::object({{"id", id}, {"state", "running"}}).dump(2));
    fmt::print(stderr,
               "job {} goes on\n  fsctl jobs follow {} --cluster {}   shows its progress again\n"
               "  fsctl jobs cancel {} --cluster {}   ends it\n",
               id, id, line.cluster, id, line.cluster);
    return exit_code({ErrorCode::kCancelled, "", "", ""});
  }
  why.hint += (why.hint.empty() ? "" : "; ") + ("the job may go on: fsctl jobs show " + id);
  return fail(line, why);
}

}  // namespace fastserve
