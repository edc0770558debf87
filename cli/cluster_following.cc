#include "cli/cluster_following.h"

#include <fmt/format.h>

#include <optional>
#include <thread>

namespace fastserve {

namespace {

/// How long a lost coordinator may take to come back.
constexpr auto kPatience = std::chrono::minutes(2);

bool may_return(const Error& error) {
  return error.code == ErrorCode::kUnavailable || error.code == ErrorCode::kDeadlineExceeded;
}

}  // namespace

bool has_ended(const ClusterJob& job) {
  return job.state == "finished" || job.state == "failed" || job.state == "cancelled";
}

bool wait_or_cancel(const CommandLine& line, std::chrono::milliseconds time) {
  constexpr auto kLook = std::chrono::milliseconds(50);
  for (; time > kLook && !line.cancel.raised(); time -= kLook) std::this_thread::sleep_for(kLook);
  return !line.cancel.raised();
}

Result<ClusterJob> watch_job(const CommandLine& line, std::unique_ptr<ClusterClient> client,
                             const JobWatch& watch) {
  const SystemClock clock;
  Nanoseconds heard = clock.now();
  std::optional<ClusterJob> last;
  const auto over = [&] {
    return last && (has_ended(*last) || (watch.enough && watch.enough(*last)));
  };
  const auto on_update = [&](const ClusterUpdate& update) {
    heard = clock.now();
    if (update.jobs.empty()) return true;
    last = update.jobs.front();
    watch.show(*last);
    return !over();
  };
  for (;;) {
    Status watched = client->watch(watch.what, on_update);
    if (watched.ok() && over()) return *last;
    // A watch that ended without a word is a loss like another.
    Error why = watched.ok() ? Error{ErrorCode::kUnavailable, "is gone", line.cluster, ""}
                             : watched.error();
    if (!line.cancel.raised() && may_return(why)) watch.say(why.message() + "; connecting again");
    for (client.reset(); client == nullptr;) {
      if (line.cancel.raised())
        return Error{ErrorCode::kCancelled, "stopped following", watch.what.job, ""};
      if (!may_return(why) || clock.now() - heard > kPatience) return why;
      wait_or_cancel(line, std::chrono::milliseconds(300));
      auto again = open_cluster(line);
      if (again.ok())
        client = std::move(*again);
      else
        why = again.error();
    }
  }
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
