// What goes wrong in a simulated cluster: see cluster_simulator.h.
#pragma once

#include "cluster_simulator.h"

namespace fastserve::simulated {

inline void Cluster::disturb() {
  const auto nodes = alive();
  if (common_.one_at_a_time) {
    if (!coordinator_.conductor || !coordinator_.conductor->all_copied()) return;
    faults_--;
    return crash(nodes[world_.rng.below(nodes.size())]);
  }
  faults_--;
  const auto any_process = [&] {
    const size_t pick = world_.rng.below(nodes.size() + 1);
    return pick == nodes.size() ? coordinator_.process : nodes[pick]->process;
  };
  switch (world_.rng.below(7)) {
    case 0:
      if (!nodes.empty()) crash(nodes[world_.rng.below(nodes.size())]);
      break;
    case 1:
      stop(any_process());
      break;
    case 2:
      if (!links_.empty()) {
        say("a connection breaks");
        covered.breaks++;
        links_[world_.rng.below(links_.size())].link->break_off();
      }
      break;
    case 3:
      crash_coordinator();
      break;
    case 4:
      say("a node joins");
      covered.joins++;
      add_node(false);
      break;
    case 5:
      covered.jumps++;
      any_process()->clock.jump(world_.chance(0.5) ? 1h : -3s);
      break;
    default:
      if (!nodes.empty()) {
        covered.stragglers++;
        const auto& node = nodes[world_.rng.below(nodes.size())];
        node->pace = world_.chance(0.6) ? 500 : 1;
        say("node " + node->name + (node->pace > 1 ? " is slow" : " is fast"));
      }
  }
}

/// Another process takes its place, now or later.
inline void Cluster::crash(const std::shared_ptr<Node>& node) {
  say("node " + node->name + " crashes");
  covered.crashes++;
  kill(node->process);
  if (common_.node_checkpoints && disks_lost_ == 0 && world_.chance(0.5)) {
    say("and its disk is lost");
    disks_lost_++;
    disks_.erase(node->name);
  }
  const auto begin = [this, node] {
    start_node(node->name, node->lanes, node->trains, node->serves);
  };
  const auto nobody = std::make_shared<Process>(world_);
  world_.post(nobody, world_.delay(1ms, 5s), begin);
}

inline void Cluster::crash_coordinator() {
  if (!coordinator_.process->alive) return;
  say("the coordinator crashes");
  covered.coordinators++;
  kill(coordinator_.process);
  if (coordinator_.conductor) coordinator_.conductor->abandon();
  coordinator_.ledger = nullptr;
  const size_t size = std::filesystem::file_size(ledger_path_);
  if (world_.chance(0.5))  // the power fails: what was not synced is there in part
    std::filesystem::resize_file(ledger_path_, synced_ + world_.rng.below(size - synced_ + 1));
  const auto nobody = std::make_shared<Process>(world_);
  world_.post(nobody, world_.delay(1ms, 5s), [this] { start_coordinator(); });
}

inline void Cluster::stop(const ProcessHandle& process) {
  say("a process stops");
  covered.stops++;
  const Nanoseconds for_long = world_.delay(10ms, 12s);
  process->stopped_until = std::max(process->stopped_until, world_.now() + for_long);
  if (world_.chance(0.5)) return;
  // The others give it up before it goes on.
  for (const auto& at : links_)
    if (at.one == process || at.other == process) at.link->break_off();
}

}  // namespace fastserve::simulated
