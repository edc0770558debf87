// Deployments and compressions of a cluster.
#include <fmt/format.h>

#include <filesystem>

#include "api/duty_request.h"
#include "cli/cluster_following.h"
#include "cli/compression_report.h"
#include "cli/progress.h"
#include "cluster/transfer_documents.h"

namespace fastserve {
namespace {

bool is_serving(const ClusterJob& job) {
  const Json* serving = job.details.find_set("serving");
  return job.state == "running" && serving != nullptr && serving->is_bool() && serving->as_bool();
}

std::string text_in(const Json& details, const char* key) {
  const auto text = details.string_or(key, "");
  return text.ok() ? *text : "";
}

/// Shows how a job goes, a bar for each stage.
class DutyProgress {
 public:
  explicit DutyProgress(const CommandLine& line) : line_(line) {}
  void update(const ClusterJob& job) {
    const std::string stage = text_in(job.details, "stage");
    if (stage.empty()) bar_.reset();
    if (job.note != said_ && !line_.json && !has_ended(job) && !is_serving(job))
      say(fmt::format("job {}: {}", job.id, said_ = job.note));
    if (stage.empty()) return;
    if (!bar_ || stage != shown_) bar_.emplace(line_.progress_wanted(), shown_ = stage);
    const auto fraction = job.details.double_or("fraction", 0);
    bar_->update(fraction.ok() ? *fraction : 0);
  }
  void say(const std::string& text) {
    bar_.reset();
    if (!line_.quiet) fmt::print(stderr, "{}\n", text);
  }

 private:
  const CommandLine& line_;
  std::optional<ProgressBar> bar_;
  std::string shown_, said_;
};

Error error_of(const ClusterJob& job) {
  if (const Json* error = job.details.find_set("error")) return error_from_json(*error);
  if (job.state == "cancelled")
    return {ErrorCode::kCancelled, "was cancelled", "job " + job.id, ""};
  return {ErrorCode::kInternal, job.note, "job " + job.id, "fsctl jobs logs " + job.id};
}

int tell_deployment(const CommandLine& line, const ClusterJob& job) {
  const std::string node = text_in(job.details, "node"), address = text_in(job.details, "address");
  const auto port = job.details.int_or("port", 0);
  const Json document = Json::object({{"job", job.id},
                                      {"model", job.model},
                                      {"node", node},
                                      {"address", address},
                                      {"port", port.ok() ? *port : 0}});
  return finish(line, document, [&] {
    fmt::print("serving {} on node {} at {}:{} (job {})\n", job.model, node, address,
               port.ok() ? *port : 0, job.id);
    fmt::print(
        "  fsctl generate {} --prompt '...' --cluster {}   asks it, from anywhere\n"
        "  fsctl jobs cancel {} --cluster {}   ends it\n",
        job.model, line.cluster, job.id, line.cluster);
  });
}

int tell_compression(const CommandLine& line, const ClusterJob& job) {
  const Json* result = job.details.find_set("result");
  auto read = result == nullptr
                  ? Result<CompressResult>(Error{ErrorCode::kCorrupt, "says nothing of its result",
                                                 "job " + job.id, ""})
                  : read_compress_result(*result);
  if (!read.ok()) return fail(line, read.error());
  return tell_compressed(line, *read);
}

int follow_to_the_end(const CommandLine& line, std::unique_ptr<ClusterClient> client,
                      const std::string& id) {
  auto job = [&] {  // the bar is gone before anything is told
    DutyProgress progress(line);
    JobWatch watch{{id, false, 5}};
    watch.enough = is_serving;
    watch.show = [&](const ClusterJob& shown) { progress.update(shown); };
    watch.say = [&](const std::string& text) { progress.say(text); };
    return watch_job(line, std::move(client), watch);
  }();
  if (!job.ok()) return tell_unfollowed(line, id, job.error());
  if (is_serving(*job)) return tell_deployment(line, *job);
  if (job->state == "finished") return tell_compression(line, *job);
  return fail(line, error_of(*job));
}

int begin(const CommandLine& line, bool detach,
          const std::function<Result<std::string>(ClusterClient&)>& ask) {
  return begin_cluster_job(line, detach, "waiting", ask,
                           [&](std::unique_ptr<ClusterClient> client, const std::string& id) {
                             return follow_to_the_end(line, std::move(client), id);
                           });
}

}  // namespace

int run_cluster_deployment(const CommandLine& line, const ClusterDeployRequest& request,
                           bool detach) {
  return begin(line, detach,
               [&](ClusterClient& client) { return client.deploy(to_json(request)); });
}

int run_cluster_compression(const CommandLine& line, const CompressRequest& request, bool detach) {
  CompressRequest there = request;
  // Where coordinator and user share a folder, its name here is its name there.
  if (!there.data.empty()) there.data = std::filesystem::absolute(there.data);
  return begin(line, detach,
               [&](ClusterClient& client) { return client.compress(to_json(there)); });
}

int follow_cluster_duty(const CommandLine& line, std::unique_ptr<ClusterClient> client,
                        const std::string& id) {
  return follow_to_the_end(line, std::move(client), id);
}

}  // namespace fastserve
