#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <thread>

#include "base/clock.h"
#include "base/file.h"
#include "cli/cluster_client.h"
#include "cli/progress.h"

namespace fastserve {
namespace {

/// A lane this much slower than its job's usual one makes its node a straggler.
constexpr double kStraggling = 0.5;

double lane_speed(const NodeStatus& node) {
  return node.lanes > 0 ? node.tokens_per_second / node.lanes : 0;
}

/// Whether each node's lanes are much slower than those of its job usually are.
std::vector<bool> stragglers(const std::vector<NodeStatus>& nodes) {
  std::map<std::string, std::vector<double>> speeds;
  for (const NodeStatus& node : nodes)
    if (!node.job.empty() && lane_speed(node) > 0) speeds[node.job].push_back(lane_speed(node));
  for (auto& [job, sorted] : speeds) std::sort(sorted.begin(), sorted.end());
  std::vector<bool> slow;
  for (const NodeStatus& node : nodes) {
    const auto found = speeds.find(node.job);
    const double usual = found == speeds.end() ? 0 : found->second[found->second.size() / 2];
    slow.push_back(lane_speed(node) > 0 && lane_speed(node) < kStraggling * usual);
  }
  return slow;
}

std::string rate(double bytes) { return human_bytes(static_cast<uint64_t>(std::max(0.0, bytes))); }

std::string table(const ClusterUpdate& update, const std::string& title) {
  std::string out = title + "\n\n";
  const auto line = [&](const std::string& text) { out += text + "\n"; };
  std::map<std::string, double> bytes;
  for (const NodeStatus& node : update.nodes) bytes[node.job] += node.bytes_per_second;
  line(fmt::format("{:<10} {:<16} {:<11} {:>15} {:>8} {:>8} {:>9} {:>11} {:>8}  {}", "JOB", "MODEL",
                   "STATE", "STEP", "LOSS", "VAL", "TOK/S", "BYTES/S", "ETA", "NOTE"));
  for (const ClusterJob& job : update.jobs) {
    if (job.kind != "train") {
      line(fmt::format("{:<10} {:<16} {:<11} {:>15} {:>8} {:>8} {:>9} {:>11} {:>8}  {}", job.id,
                       job.model, job.state, job.kind, "-", "-", "-", "-", "-", job.note));
      continue;
    }
    line(fmt::format("{:<10} {:<16} {:<11} {:>15} {:>8.4f} {:>8} {:>9.0f} {:>11} {:>8}  {}", job.id,
                     job.model, job.state, fmt::format("{}/{}", job.step, job.steps), job.loss,
                     job.validation_loss > 0 ? fmt::format("{:.4f}", job.validation_loss) : "-",
                     job.tokens_per_second, rate(bytes[job.id]), clock_text(job.eta_seconds),
                     job.note));
  }
  if (update.jobs.empty()) line("no job runs or waits");
  line("");
  line(fmt::format("{:<20} {:<9} {:>5} {:<10} {:>6} {:>9} {:>11} {:>7}  {}", "NODE", "STATE",
                   "LANES", "JOB", "SHARE", "TOK/S", "BYTES/S", "HEARD", "NOTE"));
  const int64_t now = SystemClock().unix_seconds();
  const std::vector<bool> slow = stragglers(update.nodes);
  for (size_t i = 0; i < update.nodes.size(); i++) {
    const NodeStatus& node = update.nodes[i];
    std::string note = slow[i] ? "straggler" : "";
    if (!node.note.empty()) note += (note.empty() ? "" : "; ") + node.note;
    line(fmt::format("{:<20} {:<9} {:>5} {:<10} {:>4.0f} % {:>9.0f} {:>11} {:>5} s  {}", node.name,
                     state_name(node.state), node.lanes, node.job.empty() ? "-" : node.job,
                     100 * node.share, node.tokens_per_second, rate(node.bytes_per_second),
                     std::max<int64_t>(0, now - node.last_heard_unix), note));
  }
  return out;
}

Json document(const ClusterUpdate& update) {
  Json::Array jobs, nodes;
  for (const ClusterJob& job : update.jobs) jobs.push_back(to_json(job));
  const std::vector<bool> slow = stragglers(update.nodes);
  for (size_t i = 0; i < update.nodes.size(); i++) {
    Json node = to_json(update.nodes[i]);
    node.set("straggler", bool{slow[i]});
    nodes.push_back(std::move(node));
  }
  return Json::object({{"unix", SystemClock().unix_seconds()}, {"jobs", jobs}, {"nodes", nodes}});
}

void show(const CommandLine& line, const ClusterUpdate& update, const std::string& whose,
          bool once) {
  if (line.json) {
    fmt::print("{}\n", document(update).dump(once ? 2 : -1));
  } else {
    const std::string text =
        table(update, fmt::format("{}{}", whose, once ? "" : "   (Ctrl-C ends)"));
    // Drawn over the last one, line by line, so that nothing flickers.
    if (once || isatty(STDOUT_FILENO) == 0) {
      fmt::print("{}\n", text);
    } else {
      fmt::print("\033[H");
      for (const std::string& row : CLI::detail::split(text, '\n')) fmt::print("{}\033[K\n", row);
      fmt::print("\033[J");
    }
  }
  flush_stdout();
}

int run_top(const CommandLine& line, double interval, bool once) {
  bool seen = false;
  while (true) {
    auto client = open_cluster(line);
    if (!client.ok() && !(seen && client.error().code == ErrorCode::kUnavailable))
      return fail(line, client.error());
    Status watched = client.ok() ? Status() : client.error();
    if (client.ok())
      watched = (*client)->watch({"", true, 1 / interval}, [&](const ClusterUpdate& update) {
        if (!seen && !once && !line.json && isatty(STDOUT_FILENO) != 0) fmt::print("\033[2J");
        seen = true;
        show(line, update, (*client)->endpoint(), once);
        return !once;
      });
    if (line.cancel.raised() || watched.ok()) return 0;
    const ErrorCode code = watched.error().code;
    if (code != ErrorCode::kUnavailable && code != ErrorCode::kDeadlineExceeded)
      return fail(line, watched.error());
    if (!line.quiet) fmt::print(stderr, "{}; connecting again\n", watched.error().message());
    for (int i = 0; i < 20 && !line.cancel.raised(); i++)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (line.cancel.raised()) return 0;
  }
}

}  // namespace

void add_top_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* c = app.add_subcommand("top", "A cluster at work, live: jobs, nodes, stragglers");
  auto interval = std::make_shared<double>(1);
  auto once = std::make_shared<bool>(false);
  c->add_option("--interval", *interval, "Seconds between two looks")
      ->capture_default_str()
      ->check(CLI::Range(0.1, 10.0));
  c->add_flag("--once", *once, "One look, and no more");
  c->footer(
      "Examples:\n"
      "  fsctl top --cluster 10.0.0.1:7070\n"
      "  fsctl top --cluster 10.0.0.1:7070 --once\n"
      "  fsctl top --cluster 10.0.0.1:7070 --json     # a document a line, until Ctrl-C");
  c->callback([&line, &run, interval, once] {
    run = [&line, interval, once] { return run_top(line, *interval, *once); };
  });
}

}  // namespace fastserve
