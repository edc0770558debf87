#include "cli/cluster_client.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>

#include "api/cluster_folder.h"
#include "base/endpoint.h"
#include "cluster/access_role.h"

namespace fastserve {
namespace {

/// What can be done over a cluster; every command of the groups that end with a space.
const std::set<std::string> kOverCluster = {
    "train",       "status",       "top",          "jobs list",   "jobs show",     "jobs logs",
    "jobs follow", "jobs audit",   "jobs pause",   "jobs resume", "jobs cancel",   "jobs rm",
    "node list",   "node drain",   "node undrain", "node remove", "compress",      "deploy",
    "generate",    "chat",         "models list",  "models show", "models verify", "models rename",
    "models tag",  "models untag", "models use",   "models rm",   "models import", "models export"};
/// What is about this machine and never about a cluster.
const std::set<std::string> kHere = {"version", "completion", "bench", "parity", "node start"};

std::string name_of(const CLI::App& app) {
  std::string name;
  for (const CLI::App* at = &app; !at->get_subcommands().empty();) {
    at = at->get_subcommands().front();
    name += (name.empty() ? "" : " ") + at->get_name();
  }
  return name;
}

/// The command was told which deployment to talk to.
bool has_other_place(const CLI::App& app) {
  const CLI::App* at = &app;
  while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
  const CLI::Option* connect = at->get_option_no_throw("--connect");
  return connect != nullptr && connect->count() > 0;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

Path root_of(const CommandLine& line) {
  return line.store.empty() ? default_root() : Path(line.store);
}

Result<std::string> find_token(const CommandLine& line) {
  if (!line.token.empty()) return line.token;
  if (std::string token = environment("FASTSERVE_TOKEN"); !token.empty()) return token;
  const Path file = ClusterFolder::path_in(root_of(line)) / "admin-token";
  auto text = read_file(file, 4096);
  if (!text.ok() && text.error().code == ErrorCode::kNotFound)
    return Error{
        ErrorCode::kInvalidArgument, "needs an access token", "--cluster " + line.cluster,
        "--token or $FASTSERVE_TOKEN; the coordinator's host makes one: fsctl cluster token "
        "create --kind run"};
  if (!text.ok()) return text;
  text->erase(std::remove_if(text->begin(), text->end(), [](char c) { return c <= ' '; }),
              text->end());
  return text;
}

}  // namespace

Status choose_cluster(const CLI::App& app, CommandLine& line) {
  const std::string command = name_of(app);
  const bool given = app.get_option("--cluster")->count() > 0;
  const bool any = kOverCluster.contains(command) || command.starts_with("cluster");
  if (!given && !kHere.contains(command)) line.cluster = environment("FASTSERVE_CLUSTER");
  if (has_other_place(app)) line.cluster.clear();
  if (!line.cluster.empty() && any && app.get_option("--device")->count() > 0)
    return Error{ErrorCode::kInvalidArgument, "is chosen where a node is started", "--device",
                 "fsctl node start --device cuda on the machine that has the GPU"};
  if (line.cluster.empty() || any) return {};
  if (kHere.contains(command))
    return Error{ErrorCode::kInvalidArgument, "is about this machine, and not about a cluster",
                 command,
                 command == "node start" ? "--join HOST:PORT says which cluster to join"
                                         : "leave --cluster out"};
  return Error{ErrorCode::kUnsupported, "is not done by a cluster yet", command,
               given ? "leave --cluster out to do it on this machine, with the models here"
                     : "--cluster '' does it on this machine, with the models here"};
}

Result<ClusterPlace> find_cluster(const CommandLine& line) {
  if (line.cluster.empty()) {
    const auto here = running_coordinator(root_of(line));
    if (!here.ok())
      return Error{ErrorCode::kInvalidArgument, "needs --cluster HOST:PORT or $FASTSERVE_CLUSTER",
                   "", "no coordinator runs from this store; fsctl cluster init makes a cluster"};
    return ClusterPlace{here->host, here->port, here->token};
  }
  FS_ASSIGN(const auto place, parse_endpoint(line.cluster));
  FS_ASSIGN(const std::string token, find_token(line));
  return ClusterPlace{place.host, place.port, token};
}

Result<std::unique_ptr<ClusterClient>> open_cluster(const CommandLine& line) {
  ClusterClientOptions options;
  options.cancel = &line.cancel;
  FS_ASSIGN(const ClusterPlace place, find_cluster(line));
  return ClusterClient::connect(place.host, place.port, place.token, options);
}

Error no_cluster(const char* option) {
  return {ErrorCode::kInvalidArgument, "is for a cluster: give --cluster HOST:PORT, too", option,
          "leave it out to work on this machine"};
}

Json to_json(const ClusterJob& j) {
  return Json::object({{"id", j.id},
                       {"kind", j.kind},
                       {"model", j.model},
                       {"state", j.state},
                       {"created_unix", j.created_unix},
                       {"step", j.step},
                       {"steps", j.steps},
                       {"loss", j.loss},
                       {"validation_loss", j.validation_loss},
                       {"tokens_per_second", j.tokens_per_second},
                       {"eta_seconds", j.eta_seconds},
                       {"incarnation", j.incarnation},
                       {"replayed_steps", j.replayed_steps},
                       {"note", j.note},
                       {"details", j.details}});
}

const char* state_name(NodeStatus::State state) {
  switch (state) {
    case NodeStatus::State::kReady:
      return "ready";
    case NodeStatus::State::kDraining:
      return "draining";
    case NodeStatus::State::kSilent:
      return "silent";
    case NodeStatus::State::kGone:
      return "gone";
  }
  return "?";
}

Json to_json(const NodeStatus& n) {
  return Json::object({{"name", n.name},
                       {"address", n.address},
                       {"roles", Json::array_of(n.roles)},
                       {"state", state_name(n.state)},
                       {"lanes", n.lanes},
                       {"version", n.version},
                       {"device", n.device},
                       {"numerics_id", n.numerics_id},
                       {"joined_unix", n.joined_unix},
                       {"last_heard_unix", n.last_heard_unix},
                       {"clock_skew_seconds", n.clock_skew_seconds},
                       {"note", n.note},
                       {"job", n.job},
                       {"share", n.share},
                       {"tokens_per_second", n.tokens_per_second},
                       {"bytes_per_second", n.bytes_per_second}});
}

int show_cluster_status(const CommandLine& line) {
  auto client = open_cluster(line);
  if (!client.ok()) return fail(line, client.error());
  auto status = (*client)->cluster_status();
  if (!status.ok()) return fail(line, status.error());
  auto nodes = (*client)->nodes();
  if (!nodes.ok()) return fail(line, nodes.error());
  auto jobs = (*client)->jobs();
  if (!jobs.ok()) return fail(line, jobs.error());
  Json::Array node_rows, job_rows;
  std::map<std::string, int> node_states, job_states;
  int lanes = 0;
  for (const NodeStatus& node : *nodes) {
    node_rows.push_back(to_json(node));
    node_states[state_name(node.state)]++;
    if (node.state == NodeStatus::State::kReady) lanes += node.lanes;
  }
  for (const ClusterJob& job : *jobs) {
    job_rows.push_back(to_json(job));
    job_states[job.state]++;
  }
  const auto counts = [](const std::map<std::string, int>& states) {
    std::string text;
    for (const auto& [state, count] : states)
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", count, state);
    return text.empty() ? "none" : text;
  };
  const Json document = Json::object({{"endpoint", line.cluster},
                                      {"server", (*client)->server()},
                                      {"role", access_role_name((*client)->role())},
                                      {"cluster", *status},
                                      {"nodes", node_rows},
                                      {"jobs", job_rows}});
  return finish(line, document, [&] {
    fmt::print("cluster {} ({})\n", line.cluster, (*client)->server());
    if (status->is_object())
      for (const auto& [key, value] : status->as_object())
        if (!value.is_string() || !value.as_string().empty())
          fmt::print("  {:<12} {}\n", key, value.is_string() ? value.as_string() : value.dump());
    fmt::print("nodes   {}; {} lanes ready\njobs    {}\n", counts(node_states), lanes,
               counts(job_states));
    for (const NodeStatus& node : *nodes)
      if (!node.note.empty()) fmt::print("  {}: {}\n", node.name, node.note);
  });
}

}  // namespace fastserve
