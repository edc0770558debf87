#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <thread>

#include "api/duty_request.h"
#include "cli/cluster_client.h"
#include "cli/command.h"
#include "cli/progress.h"

namespace fastserve {
namespace {

int run_deploy(const CommandLine& line, DeployRequest& request, const std::string& port_file,
               Nanoseconds grace) {
  auto node = line.node();
  if (!node.ok()) return fail(line, node.error());
  ProgressBar bar(line.progress_wanted(), "load", stored_bytes(line, **node, request.models));
  request.progress = [&](double fraction) { bar.update(fraction); };
  auto deployment = (*node)->deploy(request, true);
  bar.clear();
  if (!deployment.ok()) return fail(line, deployment.error());
  const int port = (*deployment)->port();
  if (!port_file.empty())
    if (Status written = write_file_atomically(port_file, fmt::format("{}\n", port)); !written.ok())
      return fail(line, written.error());
  const std::vector<ServedModel> served = (*deployment)->service().models();
  Json::Array models, on_device;
  for (const ServedModel& m : served) {
    models.push_back(m.name + "@" + m.version);
    if (m.on_device) on_device.push_back(models.back());
  }
  const Json document = Json::object(
      {{"address", request.address}, {"port", port}, {"models", models}, {"on_device", on_device}});
  finish(line, document, [&] {
    for (const ServedModel& m : served)
      fmt::print("serving {}@{} on {}:{} ({}Cap'n Proto; Ctrl-C stops)\n", m.name, m.version,
                 request.address, port, m.on_device ? "" : "loaded when it is asked; ");
  });
  std::fflush(stdout);
  while (!line.cancel.raised()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const ServerHealth left = (*deployment)->service().health();
  if (!line.quiet && left.running + left.queued > 0)
    fmt::print(stderr, "finishing {} requests, for up to {:g} s; Ctrl-C again stops at once\n",
               left.running + left.queued, std::chrono::duration<double>(grace).count());
  (*deployment)->drain(grace);
  return 0;
}

/// A deployment of its own for each model, and a command for each.
int run_cluster_deploy(const CommandLine& line, const DeployRequest& request,
                       const std::string& node, bool detach) {
  if (request.models.size() != 1)
    return fail(line, {ErrorCode::kInvalidArgument, "names several models", "deploy",
                       "deploy one at a time over a cluster: each may go to another node"});
  if (request.turns || request.host_memory > 0)
    return fail(line, {ErrorCode::kInvalidArgument, "is for several models of one deployment",
                       request.turns ? "--turns" : "--host-memory",
                       "over a cluster each model is a deployment of its own"});
  return run_cluster_deployment(line, {request.models.front(), node, request}, detach);
}

}  // namespace

void add_deploy_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* c = app.add_subcommand("deploy", "Serve models over Cap'n Proto until Ctrl-C");
  struct Arguments {
    DeployRequest request;
    std::string weights = "bf16", port_file;
    std::string kv = "f16";
    bool kv_float = false;
    double grace_seconds = 5;
    std::string node, listen;
    bool detach = false;
  };
  auto a = std::make_shared<Arguments>();
  c->add_option("models", a->request.models, "Stored models: name, name@version or name@tag")
      ->required();
  auto* port = c->add_option("--port", a->request.port, "0: any free one; so with --cluster")
                   ->capture_default_str()
                   ->check(CLI::Range(0, 65535));
  c->add_option("--address", a->request.address, "Address to listen on")->capture_default_str();
  c->add_flag("--allow-remote", a->request.allow_remote,
              "Allow an address that is not loopback; there is no authentication");
  c->add_option("--listen", a->listen,
                "Both: listen at this address, whoever reaches it may generate");
  c->add_option("--node", a->node,
                "With --cluster: the node that is to serve (default: the least "
                "loaded one with the role server)");
  c->add_flag("--detach", a->detach, "With --cluster: do not wait until it serves");
  c->add_option(
       "--weights", a->weights,
       "Format for matrices stored as floats: f32, bf16, f16, int8, int8-g128, int4-g32, ...")
      ->capture_default_str();
  auto* kv = c->add_option("--kv", a->kv,
                           "How keys and values are kept: f16, f32, or int8 in half of f16's "
                           "memory, with a scale for each token and head")
                 ->capture_default_str();
  c->add_flag("--kv-f32", a->kv_float, "The same as --kv f32")->excludes(kv);
  c->add_option("--context-tokens", a->request.context_tokens,
                "Tokens of KV cache a model, over all requests");
  c->add_option("--max-queue", a->request.max_queue, "Requests waiting before new ones are refused")
      ->capture_default_str();
  c->add_flag("--turns", a->request.turns,
              "Models need not fit into the device's memory together: one that is asked comes from "
              "the host and pushes out those idle for longest");
  c->add_option("--model-memory", a->request.model_memory,
                "Most of the device's memory that models take together, e.g. 20GiB (default: what "
                "it has)")
      ->transform(CLI::AsSizeValue(true));
  c->add_option(
       "--host-memory", a->request.host_memory,
       "With --turns on a GPU: most of the host's memory, pinned, in which weights are kept "
       "to come back at the link's speed, e.g. 100GiB (default: none)")
      ->transform(CLI::AsSizeValue(true));
  c->add_option("--port-file", a->port_file, "Write the port here once ready");
  c->add_option("--grace", a->grace_seconds,
                "Seconds that running requests get to finish after Ctrl-C")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 86400.0));
  c->footer(
      "With --cluster a node serves until fsctl jobs cancel, and clients of the cluster reach it "
      "through the coordinator.\n"
      "Examples:\n"
      "  fsctl deploy poems-int8 --port 8080\n"
      "  fsctl deploy poems prose code-int8 --turns --model-memory 20GiB\n"
      "  fsctl deploy poems-int8 --cluster 10.0.0.1:7070\n"
      "  fsctl deploy poems-int8@3 --node gpu-1 --port 8080 --listen 0.0.0.0 --cluster "
      "10.0.0.1:7070");
  c->callback([&line, &run, a, port] {
    run = [&line, a, port] {
      auto weights = parse_weight_format(a->weights);
      if (!weights.ok()) return fail(line, weights.error());
      a->request.weights = *weights;
      auto kv_type = parse_kv_type(a->kv_float ? "f32" : a->kv);
      if (!kv_type.ok()) return fail(line, kv_type.error());
      a->request.kv = *kv_type;
      if (!a->listen.empty()) {
        a->request.address = a->listen;
        a->request.allow_remote = true;
      }
      if (!line.cluster.empty()) {
        if (port->count() == 0) a->request.port = 0;
        return run_cluster_deploy(line, a->request, a->node, a->detach);
      }
      if (!a->node.empty()) return fail(line, no_cluster("--node"));
      if (a->detach) return fail(line, no_cluster("--detach"));
      auto grace = timeout_from_seconds(a->grace_seconds, "grace");
      if (!grace.ok()) return fail(line, grace.error());
      return run_deploy(line, a->request, a->port_file, grace->value_or(Nanoseconds{0}));
    };
  });
}

}  // namespace fastserve
