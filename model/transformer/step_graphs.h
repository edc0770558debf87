// Work that recurs, captured once and started as one.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "model/device.h"

namespace fastserve {

/// One of several ways to do the same work, in the same bits.
struct WorkWay {
  const char* name;  ///< for the log: "kernel by kernel"
  std::function<void()> work;
};

/// Records `work`; as Device::end_capture().
Result<std::unique_ptr<DeviceGraph>> graph_of(Device& device, const std::function<void()>& work);
/// Tells the device's log, once, that `what` are started as graphs, or why they are not.
void tell_of_graphs(Device& device, const char* what, const Status& made);
/// The index of the graph that takes the least time, in which the device is left as each leaves it;
/// told to the log as `what`.
size_t fastest(Device& device, std::span<const std::unique_ptr<DeviceGraph>> graphs,
               std::span<const WorkWay> ways, const char* what);

/// Owns:     the graphs of the keys used last. A key (which has ==) names all that the work depends
///           on but for what it reads from the device's memory.
/// Threads:  one caller. The device must outlive it.
/// Promises: what work computes does not depend on whether it runs as a graph. No graph is started,
///           nor work captured, when scratch memory is not what it was when that work was last
///           done.
template <class Key>
class StepGraphs {
 public:
  /// `scratch`: the scratch_version() of the operations. `most`: graphs kept. `what` takes part in
  /// the log's sentence: "decode steps".
  StepGraphs(Device& device, std::function<uint64_t()> scratch, int most, const char* what)
      : device_(device),
        scratch_(std::move(scratch)),
        what_(what),
        most_(device.captures() && device.graph_use().wanted ? static_cast<size_t>(most) : 0) {}

  /// Does `work`, which must start the same operations each time it is given for this key: at once
  /// the first time and when scratch memory has changed, captured when it comes back, from the
  /// graph then. Where a graph cannot be had, always at once. Errors: the device's, by its sync().
  void run(const Key& key, const std::function<void()>& work) {
    const WorkWay only{"", work};
    run(key, std::span(&only, 1));
  }
  /// The same with several ways to do it. Each is done at once when the key is new, and when it
  /// comes back each is captured and timed; from then on the fastest is started. So the work is
  /// done several times then, which must leave what it leaves when it is done once.
  void run(const Key& key, std::span<const WorkWay> ways) {
    if (most_ == 0) return ways.front().work();
    Entry& entry = newest(key);
    if (!entry.done || entry.scratch != scratch_()) {
      entry.graph.reset();
      for (const WorkWay& way : ways) way.work();
      entry.done = true;
      entry.scratch = scratch_();
      return;
    }
    if (!entry.graph) {
      std::vector<std::unique_ptr<DeviceGraph>> graphs;
      for (const WorkWay& way : ways) {
        auto graph = graph_of(device_, way.work);
        if (!graph.ok()) {
          tell_of_graphs(device_, what_, graph.error());
          most_ = 0;  // what was refused once would be the next time
          entries_.clear();
          return ways.front().work();
        }
        if (!*graph) return ways.front().work();  // the device has failed before: it does none
        graphs.push_back(std::move(*graph));
      }
      if (started_ == 0) tell_of_graphs(device_, what_, {});
      entry.graph = std::move(graphs[fastest(device_, graphs, ways, what_)]);
    }
    device_.launch(*entry.graph);
    ++started_;
    if (const auto& all = device_.graph_use().started) ++*all;
  }

  int64_t started() const { return started_; }

 private:
  struct Entry {
    Key key;
    std::unique_ptr<DeviceGraph> graph = nullptr;
    bool done = false;
    uint64_t scratch = 0;  // when it was done last
  };

  /// The key's, in front; another gives way to it where there are many.
  Entry& newest(const Key& key) {
    auto at = entries_.begin();
    while (at != entries_.end() && !(at->key == key)) ++at;
    if (at == entries_.end())
      entries_.push_front({key});
    else
      entries_.splice(entries_.begin(), entries_, at);
    if (entries_.size() > most_) entries_.pop_back();
    return entries_.front();
  }

  Device& device_;
  const std::function<uint64_t()> scratch_;
  const char* const what_;
  size_t most_;
  std::list<Entry> entries_;  // used last first
  int64_t started_ = 0;
};

}  // namespace fastserve
