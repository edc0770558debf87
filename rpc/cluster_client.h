// A client of a cluster's coordinator.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/clock.h"
#include "base/result.h"
#include "cluster/control.h"
#include "net/stream.h"

namespace fastserve {

/// How things stand, of a watch.
struct ClusterUpdate {
  std::vector<ClusterJob> jobs;  ///< the one job, or all that have not ended
  std::vector<NodeStatus> nodes;
  bool last = false;  ///< the one job has finished, failed or been cancelled
};

struct ClusterClientOptions {
  /// For connecting; later for the answer to a call that only looks, and for a sign of life of the
  /// coordinator during one that takes longer.
  Nanoseconds timeout = std::chrono::seconds(10);
  /// Raised: calls return kCancelled. What they asked for may happen nevertheless.
  const CancelFlag* cancel = nullptr;
};

/// One connection to a coordinator.
///
/// Owns:     a connection and a thread that talks over it.
/// Threads:  any, several at a time; each call blocks its own thread.
/// Errors:   of the coordinator as they are; kInvalidArgument also for a token of another cluster
///           or above whose role a call is; kUnavailable when nothing listens or the connection is
///           lost, kUnsupported when one side is too old, kDeadlineExceeded when no answer comes.
class ClusterClient : public ClusterControl {
 public:
  /// `access_token`: fsa1-..., which also says what cluster must answer.
  static Result<std::unique_ptr<ClusterClient>> connect(const std::string& host, int port,
                                                        const std::string& access_token,
                                                        const ClusterClientOptions& options = {});
  /// Over a connection that is there.
  static Result<std::unique_ptr<ClusterClient>> over(std::unique_ptr<Stream> stream,
                                                     const std::string& access_token,
                                                     const ClusterClientOptions& options = {});

  virtual AccessRole role() const = 0;
  /// The coordinator's name and version: "fastserve 0.1.0".
  virtual const std::string& server() const = 0;
  /// Whom the connection leads to: "coordinator (10.0.0.1:7070)".
  virtual const std::string& endpoint() const = 0;
  /// status() with its errors; that returns {"error": TEXT} instead.
  virtual Result<Json> cluster_status() = 0;

  struct Watch {
    std::string job;  ///< empty: all that have not ended
    bool with_nodes = false;
    double updates_per_second = 2;
  };
  /// Calls `on_update` on this thread for every update, the first at once, until the job has ended,
  /// or `on_update` returns false. While it works no more updates are made.
  virtual Status watch(const Watch& watch,
                       const std::function<bool(const ClusterUpdate&)>& on_update) = 0;
};

}  // namespace fastserve
