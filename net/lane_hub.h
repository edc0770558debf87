// A process's bulk lanes to its peers, and whom their messages are for.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "net/bulk_lane.h"

namespace fastserve {

/// Receives the messages of one job, from any peer. Called from the lanes' threads, at once for
/// different peers: be quick.
class BulkSink {
 public:
  virtual ~BulkSink() = default;
  /// An Error refuses the message; the lane goes on.
  virtual Result<BulkPlace> place(const std::string& peer, const BulkTag& tag, uint64_t bytes) = 0;
  virtual void arrived(const std::string& peer, const BulkTag& tag, BulkPlace place) = 0;
  /// The lane to the peer has closed; what was under way is lost.
  virtual void lost(const std::string& peer, const Error& why) = 0;
};

/// Owns:     one lane for each peer.
/// Threads:  any.
/// Promises: after close() returns, that sink is not called any more. Messages of jobs that nobody
///           has opened are refused.
class LaneHub {
 public:
  explicit LaneHub(BulkLane::Options options = {}) : options_(options) {}
  ~LaneHub();
  /// Cuts all lanes and lets go of all sinks, which are not called any more once this returns. What
  /// is asked of the hub from then on is refused, or does nothing. The destructor does it, too.
  void end();

  /// Takes a connection over, or all that make up a lane. One that is there already is lost, and
  /// told of as lost: its peer has begun anew.
  Status adopt(const std::string& peer, std::unique_ptr<Stream> stream);
  Status adopt(const std::string& peer, std::vector<std::unique_ptr<Stream>> streams);
  bool connected(const std::string& peer) const;
  /// Cuts the lane to a peer; sinks are told.
  void drop(const std::string& peer);
  /// Waits until all `peers` are connected; kUnavailable names one that is not.
  Status wait_for(const std::vector<std::string>& peers, Nanoseconds timeout);

  /// To a peer without a lane: nothing, its loss has been or will be told. Not from a sink's calls.
  void send(const std::string& peer, const BulkTag& tag, std::vector<BulkSource> parts,
            uint32_t urgency);

  /// Messages with tag.job == `job` go to the sink from now on.
  void open(uint64_t job, std::shared_ptr<BulkSink> sink);
  /// Not any more, unless another sink has been opened for the job since.
  void close(uint64_t job, const BulkSink& sink);

  BulkLane::Counters counters() const;  ///< of all lanes, those that are gone included

 private:
  class Peer;
  void lost(Peer* peer, const Error& why);
  void close_lane(const std::string& name, const Error& why);
  void reap();

  const BulkLane::Options options_;
  bool ended_ = false;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::shared_ptr<Peer>> peers_;
  std::vector<std::shared_ptr<Peer>> gone_;  // destroyed by the next call that may
  std::map<uint64_t, std::shared_ptr<BulkSink>> sinks_;
  std::map<const BulkSink*, int> inside_;  // calls into a sink
  BulkLane::Counters past_;
};

}  // namespace fastserve
