#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "api/job_folder.h"
#include "cli/cluster_client.h"
#include "cli/command.h"
#include "cli/device_use.h"

namespace fastserve {

int run_training(const CommandLine& line, const TrainRequest& request);  // train_command.cc

namespace {

Json to_json(const JobInfo& j) {
  return Json::object({{"id", j.id},
                       {"kind", j.kind},
                       {"model", j.model},
                       {"state", j.state},
                       {"created_unix", j.created_unix},
                       {"step", j.step},
                       {"steps", j.steps},
                       {"loss", j.loss},
                       {"validation_loss", j.validation_loss},
                       {"note", j.note},
                       {"details", j.details}});
}

int list_jobs(const CommandLine& line) {
  auto node = line.node();
  if (!node.ok()) return fail(line, node.error());
  auto jobs = (*node)->jobs();
  if (!jobs.ok()) return fail(line, jobs.error());
  Json::Array rows;
  for (const JobInfo& j : *jobs) rows.push_back(to_json(j));
  return finish(line, rows, [&] {
    if (jobs->empty())
      fmt::print("no jobs yet: fsctl train --help\n");
    else
      fmt::print("{:<10} {:<9} {:<20} {:<12} {:>15} {:>9}  {}\n", "JOB", "KIND", "MODEL", "STATE",
                 "STEP", "LOSS", "NOTE");
    for (const JobInfo& j : *jobs)
      fmt::print("{:<10} {:<9} {:<20} {:<12} {:>15} {:>9.4f}  {}\n", j.id, j.kind, j.model, j.state,
                 fmt::format("{}/{}", j.step, j.steps), j.loss, j.note);
  });
}

int show_job(const CommandLine& line, const std::string& id) {
  auto node = line.node();
  if (!node.ok()) return fail(line, node.error());
  auto job = (*node)->job(id);
  if (!job.ok()) return fail(line, job.error());
  return finish(line, to_json(*job), [&] {
    fmt::print("{} {} of {}: {} at step {}/{}, loss {:.4f}, validation {:.4f}\n", job->kind,
               job->id, job->model, job->state, job->step, job->steps, job->loss,
               job->validation_loss);
    if (!job->note.empty()) fmt::print("  {}\n", job->note);
    if (!job->details.is_null()) fmt::print("{}\n", job->details.dump(2));
  });
}

/// What only a cluster's job can do.
int only_in_cluster(const CommandLine& line, const char* what, const char* hint) {
  return fail(line, {ErrorCode::kUnsupported, "is for jobs of a cluster: give --cluster HOST:PORT",
                     what, hint});
}

int audit_local_job(const CommandLine& line, const std::string& id) {
  auto node = line.node();
  if (!node.ok()) return fail(line, node.error());
  const auto report = audit_job((*node)->options().root, id);
  if (!report.ok()) return fail(line, report.error());
  return finish(line, *report, [&] {
    fmt::print("job {}: each sample counted once an epoch\n{}\n", id, report->dump(2));
  });
}

Status forget_job(const CommandLine& line, const std::string& id) {
  if (!line.cluster.empty()) {
    FS_ASSIGN(const auto client, open_cluster(line));
    return client->remove_job(id);
  }
  FS_ASSIGN(const auto node, line.node());
  return node->remove_job(id);
}

int remove_job(const CommandLine& line, const std::string& id) {
  if (Status removed = forget_job(line, id); !removed.ok()) return fail(line, removed.error());
  return finish(line, Json::object({{"removed", id}}), [&] { fmt::print("removed job {}\n", id); });
}

/// Commands for jobs of a cluster.
void add_cluster_only(CLI::App& jobs, CommandLine& line, Body& run,
                      const std::shared_ptr<std::string>& id) {
  const auto add = [&](const char* word, const char* what, const char* without, auto body) {
    auto* c = jobs.add_subcommand(word, what);
    c->add_option("job", *id)->required();
    c->callback([&line, &run, id, word, without, body] {
      run = [&line, id, word, without, body] {
        return line.cluster.empty() ? only_in_cluster(line, word, without) : body(*id);
      };
    });
    return c;
  };
  constexpr const char* kRunsInFsctl = "a job here runs in its fsctl train: Ctrl-C interrupts it";
  auto follow = std::make_shared<bool>(false);
  add("logs", "What a cluster's job has logged", "a job here logs to the stderr of its fsctl train",
      [&line, follow](const std::string& job) { return print_cluster_log(line, job, *follow); })
      ->add_flag("--follow,-f", *follow, "Go on until the job ends");
  add("follow", "Show a cluster's job's progress until it ends", kRunsInFsctl,
      [&line](const std::string& job) { return follow_cluster_job(line, job); });
  add("pause", "Write a checkpoint and free the cluster's nodes", kRunsInFsctl,
      [&line](const std::string& job) { return change_cluster_job(line, "pause", job); });
  add("cancel", "End a cluster's job for good", kRunsInFsctl,
      [&line](const std::string& job) { return change_cluster_job(line, "cancel", job); });
}

}  // namespace

void add_jobs_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* jobs =
      app.add_subcommand("jobs", "Training jobs, here or in a cluster: list, show, resume, ...");
  jobs->require_subcommand(1);
  jobs->fallthrough();
  auto id = std::make_shared<std::string>();
  jobs->add_subcommand("list", "Every job of this store")->callback([&line, &run] {
    run = [&line] { return line.cluster.empty() ? list_jobs(line) : list_cluster_jobs(line); };
  });
  auto* show = jobs->add_subcommand("show", "One job: settings, progress, result");
  show->add_option("job", *id)->required();
  show->callback([&line, &run, id] {
    run = [&line, id] {
      return line.cluster.empty() ? show_job(line, *id) : show_cluster_job(line, *id);
    };
  });
  auto* resume =
      jobs->add_subcommand("resume", "Continue an interrupted job; it ends in the same bits");
  resume->add_option("job", *id)->required();
  auto placement = std::make_shared<TrainPlacement>();
  auto data = std::make_shared<std::string>();
  resume->add_option("--trainers", placement->trainers, "Trainer actors, as many as you like")
      ->check(CLI::Range(1, 1024));
  resume->add_option("--shards", placement->shards, "Parameter-server actors")
      ->check(CLI::Range(1, 1024));
  add_device_use(*resume, *placement);
  resume->add_option("--data", *data, "Where the job's data is now, when it has moved");
  resume->footer(
      "Examples:\n"
      "  fsctl jobs resume 7f3a91c2\n"
      "  fsctl train --resume 7f3a91c2 --steps 4000    # goes on, and changes its length");
  resume->callback([&line, &run, id, placement, data] {
    run = [&line, id, placement, data] {
      if (id->empty())
        return fail(line, {ErrorCode::kInvalidArgument, "names no job", "resume",
                           "fsctl jobs list shows those there are"});
      if (!line.cluster.empty()) {
        if (placement->trainers > 0 || placement->shards > 0 || placement->optimiser ||
            placement->recompute || !data->empty())
          return fail(line, {ErrorCode::kInvalidArgument,
                             "a cluster chooses where its jobs run, and its data stays where it is",
                             "resume", "give --cluster alone"});
        return change_cluster_job(line, "resume", *id);
      }
      TrainRequest request;
      request.resume = *id;
      request.data = *data;
      request.placement = *placement;
      request.placement.lanes = line.lanes;
      return run_training(line, request);
    };
  });
  add_cluster_only(*jobs, line, run, id);
  auto* proof = jobs->add_subcommand(
      "audit", "Prove from a job's ledger that each sample counted once an epoch");
  proof->add_option("job", *id)->required();
  proof->callback([&line, &run, id] {
    run = [&line, id] {
      return line.cluster.empty() ? audit_local_job(line, *id) : audit_cluster_job(line, *id);
    };
  });
  auto* rm = jobs->add_subcommand("rm", "Forget a job and delete its checkpoints");
  rm->add_option("job", *id)->required();
  rm->callback([&line, &run, id] { run = [&line, id] { return remove_job(line, *id); }; });
  jobs->footer(
      "Examples:\n"
      "  fsctl jobs list\n"
      "  fsctl jobs show 7f3a91c2\n"
      "  fsctl jobs resume 7f3a91c2\n"
      "  fsctl jobs logs 7f3a91c2 --follow --cluster 10.0.0.1:7070\n"
      "  fsctl jobs follow 7f3a91c2 --cluster 10.0.0.1:7070\n"
      "  fsctl jobs pause 7f3a91c2 --cluster 10.0.0.1:7070\n"
      "  fsctl jobs cancel 7f3a91c2 --cluster 10.0.0.1:7070\n"
      "  fsctl jobs audit 7f3a91c2\n"
      "  fsctl jobs rm 7f3a91c2");
}

}  // namespace fastserve
