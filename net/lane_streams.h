// The streams of one lane, which are dialled and come in one by one.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "net/tls.h"

namespace fastserve {

/// What the side that dials says first on each stream of a lane.
struct LanePart {
  static constexpr uint32_t kMost = 16;  ///< streams of a lane
  std::string lane;                      ///< names it; nobody else's, and never again
  uint32_t index = 0, count = 1;
};
std::string new_lane_name();
/// How many streams a lane wants whose first one, just made, is `stream`: a stream has 2 MiB on
/// their way at most (BulkLane::Options), so many fill 10 Gb/s over the round trip that the kernel
/// has measured; 1 to 4. Within a host or a machine room that is 1.
uint32_t streams_wanted(const Stream& stream);
uint32_t streams_wanted(Nanoseconds round_trip);
Status announce(Stream& stream, const LanePart& part, Nanoseconds deadline);

/// Puts together what belongs together.
///
/// Owns:    the streams of lanes that are not whole yet: of each peer one lane at most, for
///          `patience` at most.
/// Threads: any.
class LaneGathering {
 public:
  explicit LaneGathering(Nanoseconds patience = std::chrono::seconds(20)) : patience_(patience) {}

  /// Takes a peer's stream, which says at once where it belongs (5 s and `patience` at most). With
  /// the last one of its lane comes the whole lane: that connection, the others in `more`. Errors:
  /// as receive_document(), and kCorrupt for what cannot be part of a lane.
  Result<std::optional<TlsConnection>> add(TlsConnection connection);

 private:
  struct Lane {
    std::string name;
    Nanoseconds since{0};
    std::vector<std::optional<TlsConnection>> parts;
    uint32_t missing = 0;
  };
  Result<std::optional<TlsConnection>> put(TlsConnection connection, const LanePart& part);

  const Nanoseconds patience_;
  std::mutex mutex_;
  std::map<std::string, Lane> lanes_;  // by peer
};

}  // namespace fastserve
