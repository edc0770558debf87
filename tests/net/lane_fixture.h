// Two ends of a socket, and receivers that remember.
#pragma once

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>

#include "base/rng.h"
#include "net/bulk_lane.h"

namespace fastserve {

struct SocketPair {
  SocketPair() {
    int fds[2];
    FS_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    a = Socket(fds[0]);
    b = Socket(fds[1]);
  }
  Socket a, b;
};

inline std::vector<std::byte> noise(size_t n, uint64_t seed) {
  std::vector<std::byte> bytes(n);
  Rng rng(seed);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng.next());
  return bytes;
}

using SharedBytes = std::shared_ptr<std::vector<std::byte>>;
inline SharedBytes shared_noise(size_t n, uint64_t seed) {
  return std::make_shared<std::vector<std::byte>>(noise(n, seed));
}
inline BulkSource whole(const SharedBytes& bytes) { return {std::span(*bytes), bytes}; }

/// Keeps what arrives; refuses tags of kind 13; cuts the room for a message at random.
class Keeper final : public BulkReceiver {
 public:
  Result<BulkPlace> place(const BulkTag& tag, uint64_t bytes) override {
    if (tag.kind == 13) return Error{ErrorCode::kInvalidArgument, "nobody asked for it", "", ""};
    auto room = std::make_shared<std::vector<std::byte>>(bytes);
    BulkPlace place;
    place.owner = room;
    for (size_t at = 0; at < bytes;) {
      const size_t n = std::min<size_t>(bytes - at, 1 + cut_.below(bytes));
      place.parts.push_back(std::span(*room).subspan(at, n));
      at += n;
    }
    return place;
  }
  void arrived(const BulkTag& tag, BulkPlace place) override {
    std::lock_guard lock(mutex_);
    got_[tag] = *std::static_pointer_cast<std::vector<std::byte>>(place.owner);
    order_.push_back(tag);
    changed_.notify_all();
  }
  void closed(const Error& why) override {
    std::lock_guard lock(mutex_);
    FS_CHECK(!closed_);
    closed_ = why;
    changed_.notify_all();
  }

  /// What came under `tag`; waits for it, or for the end.
  std::optional<std::vector<std::byte>> wait_for(const BulkTag& tag) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return got_.contains(tag) || closed_; });
    if (!got_.contains(tag)) return std::nullopt;
    return got_[tag];
  }
  std::vector<BulkTag> order() const {
    std::lock_guard lock(mutex_);
    return order_;
  }
  Error wait_for_end() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_.has_value(); });
    return *closed_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<BulkTag, std::vector<std::byte>> got_;
  std::vector<BulkTag> order_;
  std::optional<Error> closed_;
  Rng cut_{7};
};

/// Two lanes that talk to each other over `streams` socket pairs.
struct LanePair {
  explicit LanePair(int streams = 1, BulkLane::Options options = {}) {
    std::vector<std::unique_ptr<Stream>> left, right;
    for (int i = 0; i < streams; i++) {
      SocketPair pair;
      left.push_back(plain_stream(std::move(pair.a), "right"));
      right.push_back(plain_stream(std::move(pair.b), "left"));
    }
    a = BulkLane::start(std::move(left), at_a, options).value();
    b = BulkLane::start(std::move(right), at_b, options).value();
  }
  Keeper at_a, at_b;
  std::unique_ptr<BulkLane> a, b;
};

}  // namespace fastserve
