#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "api/cluster_host.h"
#include "base/clock.h"
#include "cli/cluster_client.h"
#include "cli/command.h"
#include "cli/plain_bulk.h"

namespace fastserve {
namespace {

int start_node(const CommandLine& line, NodeHostOptions& options) {
  options.root = line.store;
  options.lanes = line.lanes;
  options.device = line.device;
  options.log = line.log();
  auto node = NodeHost::start(options);
  if (!node.ok()) return fail(line, node.error());
  finish(line, Json::object({{"name", (*node)->name()}, {"joined", options.join}}), [&] {
    fmt::print("node {} works for {} (Ctrl-C stops)\n", (*node)->name(),
               options.join.empty() ? "its cluster" : options.join);
  });
  std::fflush(stdout);
  const Status ran = (*node)->run(line.cancel);
  return ran.ok() ? 0 : say(line, ran.error());
}

int list_nodes(const CommandLine& line) {
  auto client = open_cluster(line);
  if (!client.ok()) return fail(line, client.error());
  auto nodes = (*client)->nodes();
  if (!nodes.ok()) return fail(line, nodes.error());
  Json::Array rows;
  for (const NodeStatus& node : *nodes) rows.push_back(to_json(node));
  const int64_t now = SystemClock().unix_seconds();
  return finish(line, rows, [&] {
    if (nodes->empty())
      fmt::print("no nodes yet: fsctl node start --help\n");
    else
      fmt::print("{:<20} {:<9} {:<26} {:>5} {:<22} {:>7} {:<10} {}\n", "NODE", "STATE", "ROLES",
                 "LANES", "ADDRESS", "HEARD", "JOB", "NOTE");
    for (const NodeStatus& node : *nodes)
      fmt::print("{:<20} {:<9} {:<26} {:>5} {:<22} {:>5} s {:<10} {}\n", node.name,
                 state_name(node.state), fmt::format("{}", fmt::join(node.roles, ",")), node.lanes,
                 node.address, std::max<int64_t>(0, now - node.last_heard_unix),
                 node.job.empty() ? "-" : node.job, node.note);
  });
}

enum class Change { kDrain, kUndrain, kRemove };

int change_node(const CommandLine& line, Change change, const std::string& node) {
  auto client = open_cluster(line);
  if (!client.ok()) return fail(line, client.error());
  const Status done = change == Change::kRemove ? (*client)->remove(node)
                                                : (*client)->drain(node, change == Change::kDrain);
  if (!done.ok()) return fail(line, done.error());
  const char* now = change == Change::kDrain ? "drains: it gets no new work"
                    : change == Change::kUndrain
                        ? "gets work again"
                        : "is removed: its certificate is refused from now on";
  const char* state = change == Change::kDrain     ? "draining"
                      : change == Change::kUndrain ? "ready"
                                                   : "removed";
  return finish(line, Json::object({{"node", node}, {"state", state}}),
                [&] { fmt::print("{} {}\n", node, now); });
}

void add_start(CLI::App& group, CommandLine& line, Body& run) {
  auto* c = group.add_subcommand("start", "Be a node of a cluster until Ctrl-C");
  auto o = std::make_shared<NodeHostOptions>();
  c->add_option("--join", o->join,
                "HOST:PORT of the coordinator (default: where it joined before)");
  c->add_option("--token", o->token, "Join token, the first time (or $FASTSERVE_JOIN_TOKEN)")
      ->envname("FASTSERVE_JOIN_TOKEN");
  c->add_option("--name", o->name, "Its name in the cluster (default: the host's)");
  c->add_option("--roles", o->roles,
                "trainer, parameter-server, compressor, server (default: the first two)")
      ->delimiter(',')
      ->check(CLI::IsMember({"trainer", "parameter-server", "compressor", "server"}));
  c->add_option("--address", o->address, "Where peers' connections are accepted")
      ->capture_default_str();
  c->add_option("--port", o->port, "0: any free one")
      ->capture_default_str()
      ->check(CLI::Range(0, 65535));
  c->add_option("--advertise", o->advertise, "Host by which peers reach it (default: --address)");
  add_plain_bulk(*c, o->plain_bulk);
  c->add_option("--streams", o->streams,
                "Sockets for each peer that it connects to, up to 16; auto: as many as the way is "
                "long, 1 to 4")
      ->default_str("auto")
      ->type_name("N|auto")
      ->transform(
          CLI::Transformer(std::map<std::string, std::string>{{"auto", "0"}}).description(""))
      ->check(CLI::Range(0, 16).description(""));
  c->footer(
      "Examples:\n"
      "  fsctl node start --join 10.0.0.1:7070 --token fsj1-... --address 10.0.0.2\n"
      "  fsctl node start --join 10.0.0.1:7070 --token fsj1-... --roles trainer --lanes 8\n"
      "  fsctl node start --device cuda:all      # every GPU of this host: a trainer on each\n"
      "  fsctl node start                        # again, where it joined before\n"
      "  fsctl node start --plain-bulk --trusted-network 10.0.0.0/24\n"
      "Its identity and certificate lie in the store's folder, --store.");
  c->callback([&line, &run, o] { run = [&line, o] { return start_node(line, *o); }; });
}

}  // namespace

void add_node_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* group = app.add_subcommand("node", "Nodes of a cluster: start, list, drain, remove");
  group->require_subcommand(1);
  group->fallthrough();
  add_start(*group, line, run);
  group->add_subcommand("list", "Every node: state, roles, work")->callback([&line, &run] {
    run = [&line] { return list_nodes(line); };
  });
  auto name = std::make_shared<std::string>();
  const auto add = [&](const char* word, const char* what, Change change) {
    auto* c = group->add_subcommand(word, what);
    c->add_option("node", *name, "Its name")->required();
    c->callback([&line, &run, name, change] {
      run = [&line, name, change] { return change_node(line, change, *name); };
    });
  };
  add("drain", "Give it no new work, and move what it holds elsewhere", Change::kDrain);
  add("undrain", "Take that back", Change::kUndrain);
  add("remove", "Forget it: its certificate is refused from now on", Change::kRemove);
  group->footer(
      "Examples:\n"
      "  fsctl node list --cluster 10.0.0.1:7070\n"
      "  fsctl node drain gpu-3 --cluster 10.0.0.1:7070     # before an upgrade\n"
      "  fsctl node undrain gpu-3 --cluster 10.0.0.1:7070\n"
      "  fsctl node remove gpu-3 --cluster 10.0.0.1:7070");
}

}  // namespace fastserve
