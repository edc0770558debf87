// Training jobs of a cluster.
#include <fmt/format.h>

#include <filesystem>

#include "api/train_request.h"
#include "cli/cluster_following.h"
#include "cli/training_progress.h"

namespace fastserve {
namespace {

constexpr int kLogPage = 1000;

/// Runs `use` with a client; 0 or the exit code of what failed.
template <class Use>
int with_cluster(const CommandLine& line, const Use& use) {
  auto client = open_cluster(line);
  return client.ok() ? use(**client) : fail(line, client.error());
}

std::string described(const ClusterJob& job) {
  if (job.kind != "train")
    return fmt::format("job {}, {} of {}: {}", job.id, job.kind, job.model, job.state);
  std::string text = fmt::format("job {} of {}: {} at step {}/{}, loss {:.4f}", job.id, job.model,
                                 job.state, job.step, job.steps, job.loss);
  if (job.validation_loss > 0) text += fmt::format(", validation {:.4f}", job.validation_loss);
  if (job.incarnation > 1)
    text +=
        fmt::format("; started {} times, {} steps replayed", job.incarnation, job.replayed_steps);
  return text;
}

void print_job(const ClusterJob& job) {
  fmt::print("{}\n", described(job));
  if (!job.note.empty()) fmt::print("  {}\n", job.note);
}

/// Watches with a bar until the job ends.
Result<ClusterJob> follow(const CommandLine& line, std::unique_ptr<ClusterClient> client,
                          const std::string& id) {
  TrainingProgress progress(line);
  std::string said;  // the state that was last told
  JobWatch watch{{id}};
  watch.say = [&](const std::string& text) {
    progress.clear();
    if (!line.quiet) fmt::print(stderr, "{}\n", text);
  };
  watch.show = [&](const ClusterJob& job) {
    if (job.state != said && job.state != "running" && !has_ended(job))
      watch.say(
          fmt::format("job {} is {}{}{}", id, job.state, job.note.empty() ? "" : ": ", job.note));
    said = job.state;
    progress.update({job.step, job.steps, 0, job.loss, job.validation_loss, 0, 0,
                     job.tokens_per_second, job.eta_seconds});
  };
  return watch_job(line, std::move(client), watch);
}

int follow_and_tell(const CommandLine& line, std::unique_ptr<ClusterClient> client,
                    const std::string& id) {
  auto ended = follow(line, std::move(client), id);
  if (!ended.ok()) return tell_unfollowed(line, id, ended.error());
  finish(line, to_json(*ended), [&] { print_job(*ended); });
  return ended->state == "finished" ? 0 : kExitCheckFailed;
}

}  // namespace

int run_cluster_training(const CommandLine& line, const TrainRequest& request, bool detach) {
  TrainRequest there = request;
  // Where coordinator and user share a folder, its name here is its name there.
  if (!there.data.empty()) there.data = std::filesystem::absolute(there.data);
  return begin_cluster_job(
      line, detach, "running", [&](ClusterClient& client) { return client.train(to_json(there)); },
      [&](std::unique_ptr<ClusterClient> client, const std::string& id) {
        if (!line.quiet)
          fmt::print(stderr, "job {} on {}; Ctrl-C stops following it, and not the job\n", id,
                     line.cluster);
        return follow_and_tell(line, std::move(client), id);
      });
}

int follow_cluster_job(const CommandLine& line, const std::string& id) {
  auto client = open_cluster(line);
  if (!client.ok()) return fail(line, client.error());
  const auto job = (*client)->job(id);
  if (!job.ok()) return fail(line, job.error());
  if (job->kind != "train") return follow_cluster_duty(line, std::move(*client), id);
  return follow_and_tell(line, std::move(*client), id);
}

int list_cluster_jobs(const CommandLine& line) {
  return with_cluster(line, [&](ClusterClient& client) {
    auto jobs = client.jobs();
    if (!jobs.ok()) return fail(line, jobs.error());
    Json::Array rows;
    for (const ClusterJob& job : *jobs) rows.push_back(to_json(job));
    return finish(line, rows, [&] {
      if (jobs->empty())
        fmt::print("no jobs yet: fsctl train --help\n");
      else
        fmt::print("{:<10} {:<9} {:<20} {:<12} {:>15} {:>9} {:>9}  {}\n", "JOB", "KIND", "MODEL",
                   "STATE", "STEP", "LOSS", "TOK/S", "NOTE");
      for (const ClusterJob& job : *jobs) {
        if (job.kind != "train") {
          fmt::print("{:<10} {:<9} {:<20} {:<12} {:>15} {:>9} {:>9}  {}\n", job.id, job.kind,
                     job.model, job.state, "-", "-", "-", job.note);
          continue;
        }
        fmt::print("{:<10} {:<9} {:<20} {:<12} {:>15} {:>9.4f} {:>9.0f}  {}\n", job.id, job.kind,
                   job.model, job.state, fmt::format("{}/{}", job.step, job.steps), job.loss,
                   job.tokens_per_second, job.note);
      }
    });
  });
}

int show_cluster_job(const CommandLine& line, const std::string& id) {
  return with_cluster(line, [&](ClusterClient& client) {
    auto job = client.job(id);
    if (!job.ok()) return fail(line, job.error());
    return finish(line, to_json(*job), [&] {
      print_job(*job);
      if (!job->details.is_null()) fmt::print("{}\n", job->details.dump(2));
    });
  });
}

int print_cluster_log(const CommandLine& line, const std::string& id, bool follow) {
  return with_cluster(line, [&](ClusterClient& client) {
    Json::Array all;
    for (uint64_t next = 0;;) {
      auto lines = client.log(id, next, kLogPage);
      if (!lines.ok()) return fail(line, lines.error());
      next += lines->size();
      for (std::string& text : *lines) {
        if (line.json && !follow)
          all.emplace_back(std::move(text));
        else
          fmt::print("{}\n", line.json ? Json(std::move(text)).dump() : text);
      }
      flush_stdout();
      if (!lines->empty()) continue;
      if (!follow) break;
      auto job = client.job(id);
      if (!job.ok()) return fail(line, job.error());
      if (has_ended(*job) || !wait_or_cancel(line, std::chrono::seconds(1))) return 0;
    }
    return finish(line, all, [] {});
  });
}

int audit_cluster_job(const CommandLine& line, const std::string& id) {
  return with_cluster(line, [&](ClusterClient& client) {
    auto report = client.audit(id);
    if (!report.ok()) return fail(line, report.error());
    return finish(line, *report, [&] {
      fmt::print("job {}: each sample counted once an epoch\n{}\n", id, report->dump(2));
    });
  });
}

int change_cluster_job(const CommandLine& line, const std::string& change, const std::string& id) {
  return with_cluster(line, [&](ClusterClient& client) {
    const Status done = change == "pause"    ? client.pause(id)
                        : change == "resume" ? client.resume(id)
                                             : client.cancel(id);
    if (!done.ok()) return fail(line, done.error());
    auto job = client.job(id);
    if (!job.ok()) return fail(line, job.error());
    return finish(line, to_json(*job), [&] { print_job(*job); });
  });
}

}  // namespace fastserve
