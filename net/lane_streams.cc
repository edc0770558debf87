#include "net/lane_streams.h"

#include <fmt/format.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cmath>

#include "base/entropy.h"
#include "base/json.h"
#include "net/bulk_lane.h"
#include "net/document_stream.h"

namespace fastserve {
namespace {

constexpr size_t kNameBytes = 16;                     // hex digits
constexpr double kLink = 10e9 / 8;                    // bytes/s that a lane is to fill
constexpr uint32_t kMostOfItself = 4;                 // more only where the user says so
constexpr auto kFirstWord = std::chrono::seconds(5);  // from a stream that has just been made

Result<LanePart> read_part(const std::string& text, const std::string& peer) {
  const Error bad{ErrorCode::kCorrupt, "does not say which stream of which lane it is", peer,
                  "the two sides may run versions that do not speak with each other"};
  const auto json = Json::parse(text, peer, {.depth = 2});
  if (!json.ok() || !json->is_object()) return bad;
  const Json* const lane = json->find_set("lane");
  const Json* const index = json->find_set("index");
  const Json* const count = json->find_set("count");
  if (lane == nullptr || !lane->is_string() || lane->as_string().size() != kNameBytes) return bad;
  const auto number = [](const Json* value) {
    return value != nullptr && value->is_int() && value->as_int() >= 0 &&
           value->as_int() <= LanePart::kMost;
  };
  if (!number(index) || !number(count)) return bad;
  LanePart part{lane->as_string(), static_cast<uint32_t>(index->as_int()),
                static_cast<uint32_t>(count->as_int())};
  if (part.index >= part.count) return bad;
  return part;
}

}  // namespace

std::string new_lane_name() {
  uint64_t word = 0;
  fill_with_entropy(std::as_writable_bytes(std::span(&word, 1)));
  return fmt::format("{:016x}", word);
}

uint32_t streams_wanted(Nanoseconds round_trip) {
  const BulkLane::Options lane;
  const double on_their_way = kLink * std::chrono::duration<double>(round_trip).count();
  const double streams = std::ceil(on_their_way / (double(lane.chunk) * lane.window));
  return static_cast<uint32_t>(std::clamp<double>(streams, 1, kMostOfItself));
}

uint32_t streams_wanted(const Stream& stream) {
  tcp_info info{};
  socklen_t size = sizeof info;
  // The least of the times that it took: others have a slow answer in them.
  if (::getsockopt(stream.fd(), IPPROTO_TCP, TCP_INFO, &info, &size) != 0 ||
      size < offsetof(tcp_info, tcpi_min_rtt) + sizeof info.tcpi_min_rtt ||
      info.tcpi_min_rtt == UINT32_MAX)
    return 1;
  return streams_wanted(std::chrono::microseconds(info.tcpi_min_rtt));
}

Status announce(Stream& stream, const LanePart& part, Nanoseconds deadline) {
  const Json json =
      Json::object({{"lane", part.lane}, {"index", part.index}, {"count", part.count}});
  return send_document(stream, json.dump(), deadline);
}

Result<std::optional<TlsConnection>> LaneGathering::add(TlsConnection connection) {
  FS_ASSIGN(const std::string text,
            receive_document(*connection.stream,
                             steady_now() + std::min<Nanoseconds>(patience_, kFirstWord)));
  FS_ASSIGN(const LanePart part, read_part(text, connection.stream->peer()));
  return put(std::move(connection), part);
}

Result<std::optional<TlsConnection>> LaneGathering::put(TlsConnection connection,
                                                        const LanePart& part) {
  const std::string peer = connection.claim ? connection.claim->node : "";
  const Nanoseconds now = steady_now();
  const std::lock_guard lock(mutex_);
  std::erase_if(lanes_, [&](const auto& entry) { return now - entry.second.since > patience_; });
  Lane& lane = lanes_[peer];
  if (lane.name != part.lane) {
    lane = {part.lane, now, {}, part.count};
    lane.parts.resize(part.count);
  }
  if (lane.parts.size() != part.count || lane.parts[part.index])
    return Error{ErrorCode::kCorrupt, "sent two streams of a lane that do not fit together",
                 connection.stream->peer(), ""};
  lane.parts[part.index] = std::move(connection);
  if (--lane.missing > 0) return std::optional<TlsConnection>();
  std::optional<TlsConnection> whole = std::move(lane.parts[0]);
  for (size_t i = 1; i < lane.parts.size(); i++)
    whole->more.push_back(std::move(lane.parts[i]->stream));
  lanes_.erase(peer);
  return whole;
}

}  // namespace fastserve
