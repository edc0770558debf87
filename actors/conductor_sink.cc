#include "actors/conductor_sink.h"

#include "actors/state_tensors.h"

namespace fastserve {

using wire_messages::BulkKind;

Result<BulkPlace> ConductorSink::place(const std::string& peer, const BulkTag& tag,
                                       uint64_t bytes) {
  const auto kind = static_cast<BulkKind>(tag.kind);
  const bool best = kind == BulkKind::kBest || kind == BulkKind::kFinal;  // weights alone
  const bool known = best || kind == BulkKind::kState;
  const Error refused{ErrorCode::kInvalidArgument, "sent a tensor that nobody waits for",
                      "node " + peer, ""};
  if (!known || tag.key >= ranges_.size() || !(replicated_ || owners_[tag.key] == peer))
    return refused;
  const ParameterShard::Range& range = ranges_[tag.key];
  const size_t n = range.end - range.begin;
  if (bytes != n * sizeof(float) * (best ? 1 : 3)) return refused;
  return place_state(range, {tag.step}, best);
}

void ConductorSink::arrived(const std::string&, const BulkTag& tag, BulkPlace place) {
  caf::anon_send(conductor_,
                 messages::StateHere{static_cast<uint32_t>(tag.key),
                                     std::static_pointer_cast<const ShardState>(place.owner),
                                     tag.kind == static_cast<uint64_t>(BulkKind::kBest)});
}

void ConductorSink::lost(const std::string& peer, const Error& why) {
  caf::anon_send(conductor_, messages::PeerGone{peer, why});
}

}  // namespace fastserve
