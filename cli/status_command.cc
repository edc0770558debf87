#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>

#include "base/endpoint.h"
#include "cli/cluster_client.h"
#include "cli/command.h"
#include "rpc/client.h"

namespace fastserve {
namespace {

int server_status(const CommandLine& line, const std::string& address) {
  auto place = parse_endpoint(address);
  if (!place.ok()) return fail(line, place.error());
  auto client = RpcClient::connect(place->host, place->port, std::chrono::seconds(5));
  if (!client.ok()) return fail(line, client.error());
  auto health = (*client)->health();
  if (!health.ok()) return fail(line, health.error());
  auto models = (*client)->models();
  if (!models.ok()) return fail(line, models.error());
  std::vector<std::string> names, on_device, said;
  for (const ServedModel& m : *models) {
    said.push_back(names.emplace_back(m.name + "@" + m.version));
    if (m.on_device)
      on_device.push_back(names.back());
    else
      said.back() += " (not in the device's memory now)";
  }
  const Json document = Json::object({{"ready", health->ready},
                                      {"running", health->running},
                                      {"queued", health->queued},
                                      {"kv_blocks_free", health->kv_blocks_free},
                                      {"kv_blocks", health->kv_blocks},
                                      {"tokens_generated", health->tokens_generated},
                                      {"requests_finished", health->requests_finished},
                                      {"uptime_seconds", health->uptime_seconds},
                                      {"device", health->device},
                                      {"models", Json::array_of(names)},
                                      {"on_device", Json::array_of(on_device)}});
  return finish(line, document, [&] {
    fmt::print(
        "{} on {}: {} running, {} queued, {} of {} KV blocks free, {} tokens in {} requests, up "
        "{:.0f} s\nserves {}\n",
        health->ready ? "ready" : "not ready", health->device, health->running, health->queued,
        health->kv_blocks_free, health->kv_blocks, health->tokens_generated,
        health->requests_finished, health->uptime_seconds, fmt::join(said, ", "));
  });
}

int local_status(const CommandLine& line) {
  auto node = line.node();
  if (!node.ok()) return fail(line, node.error());
  auto store = (*node)->glance_at_store();
  if (!store.ok()) return fail(line, store.error());
  auto models = (*store)->list();
  if (!models.ok()) return fail(line, models.error());
  auto jobs = (*node)->jobs();
  if (!jobs.ok()) return fail(line, jobs.error());
  auto free = free_space((*node)->options().root);
  uint64_t bytes = 0;
  for (const ModelInfo& m : *models) bytes += m.unique_bytes;
  std::map<std::string, int64_t> by_state;
  for (const JobInfo& j : *jobs) by_state[j.state]++;
  Json states = Json::object({});
  std::string said;
  for (const auto& [state, count] : by_state) {
    states.set(state, count);
    said += fmt::format("{}{} {}", said.empty() ? "" : ", ", count, state);
  }
  const Json document = Json::object({{"store", (*node)->options().root.string()},
                                      {"versions", models->size()},
                                      {"unique_bytes", bytes},
                                      {"free_bytes", free.ok() ? *free : 0},
                                      {"jobs", states},
                                      {"lanes", (*node)->options().lanes}});
  return finish(line, document, [&] {
    fmt::print("store   {} ({} free)\nmodels  {} versions\njobs    {}\nlanes   {}\n",
               (*node)->options().root.string(), free.ok() ? human_bytes(*free) : "?",
               models->size(), said.empty() ? "none" : said, (*node)->options().lanes);
  });
}

}  // namespace

void add_status_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* c =
      app.add_subcommand("status", "The store and its jobs, a running deployment, or a cluster");
  auto address = std::make_shared<std::string>();
  c->add_option("--connect", *address, "HOST:PORT of a deployment");
  c->footer(
      "Examples:\n  fsctl status\n  fsctl status --connect 127.0.0.1:8080 --json\n"
      "  fsctl status --cluster 10.0.0.1:7070");
  c->callback([&line, &run, address] {
    run = [&line, address] {
      if (!address->empty()) return server_status(line, *address);
      return line.cluster.empty() ? local_status(line) : show_cluster_status(line);
    };
  });
}

}  // namespace fastserve
