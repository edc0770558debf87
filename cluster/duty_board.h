// Which node of a cluster serves or compresses which model, and what becomes of it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "cluster/control.h"
#include "cluster/duty.h"
#include "store/state_store.h"

namespace fastserve {

/// A deployment or a compression, as the coordinator remembers it.
struct Duty {
  enum class State : uint8_t { kWaiting, kRunning, kFinished, kFailed, kCancelled };
  std::string id;
  DutyKind kind = DutyKind::kDeploy;
  std::string model;  ///< "name@3"
  Json settings;
  std::string pinned;  ///< the node that the user named; empty: any
  int64_t created_unix = 0;
  State state = State::kWaiting;
  std::string node;       ///< that has it; empty: none
  int lost = 0;           ///< nodes that were lost while they had it
  std::string note;       ///< where it is, what it waits for, why it failed
  std::string published;  ///< of a compression: the model it made
  Json result;
  std::optional<Error> error;
  DutyReport last;  ///< what the node says; not kept on disk
  /// Of a deployment that moves: the node that is being drained, and serves until the other does.
  std::string leaves;
  DutyReport before;  ///< what that one says; neither is kept on disk

  bool ended() const { return state >= State::kFinished; }
  bool serving() const {
    return state == State::kRunning && last.state == DutyReport::State::kServing;
  }
};
const char* duty_state_name(Duty::State state);  ///< as ClusterJob::state

/// Gives duties to nodes that are ready and have the role, the least loaded first, and to others
/// when a node is lost or drained. A compression is done by the coordinator itself where no node
/// has the role.
///
/// What was given to a node that has gone stays with it for kPatience: a process that is started
/// again takes it up where it was. A deployment waits for kSoon alone where the node's connection
/// has ended: starting it elsewhere costs less than the requests that find nobody. Before a
/// deployment leaves a node that is drained, another one serves it, if there is one. A compression
/// that loses kMostLost nodes has failed.
///
/// Owns:     records of the state, "duties/ID": a coordinator that is started again knows them all.
/// Threads:  any.
/// Promises: a duty is one node's at a time, as far as the orders go, but for a deployment that
///           leaves a node.
class DutyBoard {
 public:
  static constexpr Nanoseconds kPatience = std::chrono::seconds(15);
  static constexpr Nanoseconds kSoon = std::chrono::seconds(3);
  static constexpr int kMostLost = 3;
  static constexpr size_t kMostEnded = 200;  ///< that are remembered

  static Result<std::unique_ptr<DutyBoard>> open(StateStore& state, const Clock& clock);

  /// Its id. kResourceExhausted when there are too many.
  Result<std::string> add(DutyKind kind, const std::string& model, const Json& settings,
                          const std::string& pinned);
  /// kNotFound, or kInvalidArgument for one that has ended.
  Status cancel(const std::string& id);
  /// Forgets one that has ended. kNotFound; kUnavailable: it has not.
  Status remove(const std::string& id);
  Result<Duty> find(const std::string& id) const;
  std::vector<Duty> all() const;  ///< the oldest first
  /// Lines of its log.
  Result<std::vector<std::string>> events(const std::string& id) const;
  /// Nodes that have something to do, and an empty name for what waits for one.
  std::set<std::string> busy() const;

  /// How things stand: whoever should do something is given it.
  void settle(const std::vector<NodeStatus>& nodes);
  /// All that the node should be doing.
  std::vector<DutyOrder> orders(const std::string& node) const;
  void report(const std::string& node, const std::vector<DutyReport>& reports);
  /// The compression has made and stored this model, which its last report may not live to say.
  Status published(const std::string& id, const std::string& model);

  /// A deployment that answers for "name" or "name@3", the newest first; kNotFound when there is
  /// none, kUnavailable when it does not answer now, both with what to do.
  Result<Duty> serving(const std::string& model) const;

 private:
  DutyBoard(StateStore& state, const Clock& clock) : state_(state), clock_(clock) {}
  struct Entry {
    Duty duty;
    std::vector<std::string> events;
    Nanoseconds seen{0};           // when its node was last there
    bool was_there = false;        // that was since this board was opened
    std::set<std::string> failed;  // nodes that could not do it
  };

  void settle_one(Entry& entry, const std::vector<NodeStatus>& nodes);
  void place(Entry& entry, const std::vector<NodeStatus>& nodes);
  std::string choose(const Entry& entry, const std::vector<NodeStatus>& nodes) const;
  void give(Entry& entry, const std::string& node);
  void take(Entry& entry, const std::string& why);
  void leave(Entry& entry, const std::string& other);
  void settle_move(Entry& entry, const std::vector<NodeStatus>& nodes);
  bool is_given_up(const Entry& entry, const NodeStatus& node) const;
  void failed(Entry& entry, const Error& error);
  void say(Entry& entry, const std::string& what);
  Status keep(const Duty& duty, const std::vector<std::string>& events);
  void forget_oldest();

  StateStore& state_;
  const Clock& clock_;
  mutable std::mutex mutex_;
  std::map<std::string, Entry> entries_;  // by id
};

}  // namespace fastserve
