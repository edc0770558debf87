#include "net/lane_hub.h"

namespace fastserve {
namespace {

Error ending(const std::string& peer) {
  return {ErrorCode::kCancelled, "this side is shutting down", peer, ""};
}

}  // namespace

/// The lane to one peer, and its receiver.
class LaneHub::Peer final : public BulkReceiver {
 public:
  Peer(LaneHub& hub, std::string name) : hub_(hub), name_(std::move(name)) {}

  Result<BulkPlace> place(const BulkTag& tag, uint64_t bytes) override {
    const Inside inside(hub_, tag.job);
    if (inside.sink() == nullptr)
      return Error{ErrorCode::kNotFound, "a message came for a job that is not here", name_, ""};
    return inside.sink()->place(name_, tag, bytes);
  }
  void arrived(const BulkTag& tag, BulkPlace place) override {
    const Inside inside(hub_, tag.job);
    if (inside.sink() != nullptr) inside.sink()->arrived(name_, tag, std::move(place));
  }
  void closed(const Error& why) override { hub_.lost(this, why); }

  LaneHub& hub_;
  const std::string name_;
  std::shared_ptr<BulkLane> lane;  // guarded by the hub's mutex once the hub knows this

  /// Keeps close() waiting while a sink is called.
  class Inside {
   public:
    Inside(LaneHub& hub, uint64_t job) : hub_(hub) {
      std::lock_guard lock(hub_.mutex_);
      const auto it = hub_.sinks_.find(job);
      if (it == hub_.sinks_.end()) return;
      sink_ = it->second;
      hub_.inside_[sink_.get()]++;
    }
    ~Inside() {
      if (sink_ == nullptr) return;
      std::lock_guard lock(hub_.mutex_);
      if (--hub_.inside_[sink_.get()] == 0) {
        hub_.inside_.erase(sink_.get());
        hub_.changed_.notify_all();
      }
    }
    BulkSink* sink() const { return sink_.get(); }

   private:
    LaneHub& hub_;
    std::shared_ptr<BulkSink> sink_;
  };
};

LaneHub::~LaneHub() { end(); }

void LaneHub::end() {
  std::map<uint64_t, std::shared_ptr<BulkSink>> sinks;
  std::map<std::string, std::shared_ptr<Peer>> peers;
  std::vector<std::shared_ptr<Peer>> gone;
  {
    std::lock_guard lock(mutex_);
    ended_ = true;
    sinks.swap(sinks_);
    peers.swap(peers_);
    gone.swap(gone_);
    changed_.notify_all();
  }
  // Their threads are joined: nobody is inside a sink after this.
  for (auto& [name, peer] : peers) peer->lane = nullptr;
  for (auto& peer : gone) peer->lane = nullptr;
}

void LaneHub::lost(Peer* peer, const Error& why) {
  std::vector<std::shared_ptr<BulkSink>> sinks;
  {
    std::lock_guard lock(mutex_);
    const auto it = peers_.find(peer->name_);
    if (it == peers_.end() || it->second.get() != peer) return;  // replaced, or the hub is ending
    gone_.push_back(std::move(it->second));
    peers_.erase(it);
    for (const auto& [job, sink] : sinks_) sinks.push_back(sink);
    for (const auto& sink : sinks) inside_[sink.get()]++;
  }
  for (const auto& sink : sinks) sink->lost(peer->name_, why);
  std::lock_guard lock(mutex_);
  for (const auto& sink : sinks)
    if (--inside_[sink.get()] == 0) inside_.erase(sink.get());
  changed_.notify_all();
}

void LaneHub::reap() {
  std::vector<std::shared_ptr<Peer>> gone;
  {
    std::lock_guard lock(mutex_);
    gone.swap(gone_);
  }
  for (const auto& peer : gone) {
    std::shared_ptr<BulkLane> lane;
    {
      std::lock_guard lock(mutex_);
      lane = std::move(peer->lane);
    }
    const BulkLane::Counters last = lane->counters();
    lane = nullptr;  // joins its threads, unless somebody sends just now
    std::lock_guard lock(mutex_);
    past_.bytes_sent += last.bytes_sent;
    past_.bytes_received += last.bytes_received;
    past_.messages_sent += last.messages_sent;
    past_.messages_received += last.messages_received;
    past_.messages_refused += last.messages_refused;
  }
}

Status LaneHub::adopt(const std::string& name, std::unique_ptr<Stream> stream) {
  std::vector<std::unique_ptr<Stream>> streams;
  streams.push_back(std::move(stream));
  return adopt(name, std::move(streams));
}

Status LaneHub::adopt(const std::string& name, std::vector<std::unique_ptr<Stream>> streams) {
  // What was under way in a lane before it is lost, and this end may be the only one to know.
  close_lane(name, {ErrorCode::kUnavailable, "has connected anew", name, ""});
  auto peer = std::make_shared<Peer>(*this, name);
  {
    // Its threads may call at once: they wait until the peer is known.
    std::lock_guard lock(mutex_);
    if (ended_) return ending(name);
    FS_ASSIGN(auto lane, BulkLane::start(std::move(streams), *peer, options_));
    peer->lane = std::move(lane);
    std::shared_ptr<Peer>& place = peers_[name];
    if (place != nullptr) gone_.push_back(std::move(place));
    place = std::move(peer);
    changed_.notify_all();
  }
  reap();
  return {};
}

void LaneHub::drop(const std::string& name) {
  close_lane(name, {ErrorCode::kUnavailable, "was cut off", name, ""});
  reap();
}

void LaneHub::close_lane(const std::string& name, const Error& why) {
  std::shared_ptr<Peer> peer;
  {
    std::lock_guard lock(mutex_);
    const auto it = peers_.find(name);
    if (it == peers_.end()) return;
    peer = it->second;
  }
  lost(peer.get(), why);
}

bool LaneHub::connected(const std::string& peer) const {
  std::lock_guard lock(mutex_);
  return peers_.contains(peer);
}

Status LaneHub::wait_for(const std::vector<std::string>& peers, Nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  std::string missing;
  const auto all = [&] {
    if (ended_) return true;
    for (const std::string& peer : peers)
      if (!peers_.contains(peer)) {
        missing = peer;
        return false;
      }
    return true;
  };
  const bool met = changed_.wait_for(lock, timeout, all);
  if (ended_) return ending(missing);
  if (met) return {};
  return Error{ErrorCode::kUnavailable, "cannot be reached for tensors", "node " + missing,
               "look whether its address and port are open to the other nodes"};
}

void LaneHub::send(const std::string& name, const BulkTag& tag, std::vector<BulkSource> parts,
                   uint32_t urgency) {
  std::shared_ptr<Peer> peer;  // the lane's receiver lives as long as the lane
  std::shared_ptr<BulkLane> lane;
  {
    std::lock_guard lock(mutex_);
    const auto it = peers_.find(name);
    if (it == peers_.end()) return;
    peer = it->second;
    lane = peer->lane;
  }
  lane->send(tag, std::move(parts), urgency);
}

void LaneHub::open(uint64_t job, std::shared_ptr<BulkSink> sink) {
  std::lock_guard lock(mutex_);
  if (!ended_) sinks_[job] = std::move(sink);
}

void LaneHub::close(uint64_t job, const BulkSink& sink) {
  std::shared_ptr<BulkSink> last;
  {
    std::unique_lock lock(mutex_);
    const auto it = sinks_.find(job);
    if (it != sinks_.end() && it->second.get() == &sink) {
      last = std::move(it->second);
      sinks_.erase(it);
    }
    changed_.wait(lock, [&] { return !inside_.contains(&sink); });
  }
  reap();
}

BulkLane::Counters LaneHub::counters() const {
  std::lock_guard lock(mutex_);
  BulkLane::Counters all = past_;
  for (const auto& [name, peer] : peers_) {
    const BulkLane::Counters now = peer->lane->counters();
    all.bytes_sent += now.bytes_sent;
    all.bytes_received += now.bytes_received;
    all.messages_sent += now.messages_sent;
    all.messages_received += now.messages_received;
    all.messages_refused += now.messages_refused;
  }
  return all;
}

}  // namespace fastserve
