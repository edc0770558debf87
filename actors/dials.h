// Who of a node connects to which peer. For actors/ alone.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <string>

#include "net/lane_hub.h"

namespace fastserve {

/// Connects to a peer once, whoever wants to at the same time: jobs share the lane.
///
/// Threads: any; connect() blocks for as long as the dial that it makes or waits for.
class Dials {
 public:
  /// Does nothing when there is a lane, perhaps by another's dial meanwhile.
  Status connect(const LaneHub& hub, const std::string& peer, const std::function<Status()>& dial) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !under_way_.contains(peer); });
    if (hub.connected(peer)) return {};
    under_way_.insert(peer);
    lock.unlock();
    const Status status = dial();
    lock.lock();
    under_way_.erase(peer);
    changed_.notify_all();
    return status;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::string> under_way_;
};

}  // namespace fastserve
