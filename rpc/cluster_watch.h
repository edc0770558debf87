// Watches: what becomes of jobs, sent to clients as it happens.
#pragma once

#include <kj/timer.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "rpc/cluster_messages.h"
#include "rpc/cluster_pool.h"
#include "rpc/cluster_server.h"
#include "rpc/cluster_session.h"

namespace fastserve {

/// Asks ClusterControl for those who watch, and pushes what it answers.
///
/// Threads:  the loop's; what blocks runs where `ask` puts it.
/// Promises: one question is out at a time, for all watches that are due together. A watch whose
///           last update is unanswered is not due: it costs nothing until its client answers.
class ClusterWatches final : private kj::TaskSet::ErrorHandler {
 public:
  /// Runs `work` elsewhere and then `done` on the loop's thread; false: too much is under way.
  using Ask = std::function<bool(std::function<void()> work, std::function<void()> done)>;

  ClusterWatches(ClusterControl& control, const ClusterServer::CheckToken& check_token,
                 const ClusterServerOptions& options, kj::Timer& timer, Ask ask)
      : control_(control),
        check_token_(check_token),
        options_(options),
        timer_(timer),
        ask_(std::move(ask)),
        tasks_(*this) {}

  struct Wanted {
    std::string job;  ///< empty: all that have not ended
    bool with_nodes = false;
    double updates_per_second = 2;
  };
  /// The watch's key, for drop().
  uint64_t add(uint64_t connection, std::shared_ptr<ClusterSession> session, const Wanted& wanted,
               wire::UpdateSink::Client sink);
  void drop(uint64_t key);
  void drop_connection(uint64_t connection);
  size_t count(uint64_t connection) const;
  /// The connection has an update that its client did not answer.
  bool unanswered(uint64_t connection) const;

 private:
  struct Watch {
    uint64_t connection;
    std::shared_ptr<ClusterSession> session;
    Wanted wanted;
    kj::Duration interval;
    wire::UpdateSink::Client sink;
    kj::TimePoint due;
    bool unanswered = false;
    std::optional<uint64_t> said;  // hash of the last update
    kj::TimePoint said_at;
  };
  struct Answers;

  void taskFailed(kj::Exception&&) override {}  // each push handles its own
  void arm();
  void wake();
  void tell(const Answers& answers);
  void push(uint64_t key, Watch& watch, wire::Update::Reader update);

  ClusterControl& control_;
  const ClusterServer::CheckToken& check_token_;
  const ClusterServerOptions& options_;
  kj::Timer& timer_;
  const Ask ask_;
  uint64_t next_key_ = 1;
  std::map<uint64_t, Watch> watches_;
  bool asking_ = false;
  kj::Maybe<kj::TimePoint> armed_;  // the soonest timer that runs
  kj::TaskSet tasks_;
};

}  // namespace fastserve
