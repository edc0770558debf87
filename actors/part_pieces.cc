// What a part takes in of checkpoints: copies of other nodes' pieces, and the best weights so far.
#include "actors/piece_keeper.h"

namespace fastserve {

using namespace messages;
using wire_messages::BulkKind;

namespace {

struct Copy {
  ShardState state;
  std::vector<float> best;
};

}  // namespace

void PartSink::set_keeper(PieceKeeperActor keeper) {
  std::lock_guard lock(mutex_);
  keeper_ = std::move(keeper);
  for (auto early = std::exchange(early_, {}); auto& best : early)
    if (keeper_) caf::anon_send(keeper_, std::move(best));
}

Result<BulkPlace> PartSink::place_piece(const std::string& peer, const BulkTag& tag,
                                        uint64_t bytes) {
  const Error refused{ErrorCode::kInvalidArgument, "sent a piece of a checkpoint",
                      peer.empty() ? "the coordinator" : "node " + peer, ""};
  const bool restored = static_cast<BulkKind>(tag.kind) == BulkKind::kBest;
  if (!room_->spec.node_checkpoints || tag.key >= room_->ranges.size() ||
      restored != (peer == kCoordinatorPeer))
    return refused;
  const auto shard = static_cast<uint32_t>(tag.key);
  const auto& range = room_->ranges[shard];
  const size_t n = range.end - range.begin;
  if (restored) {
    if (bytes != n * sizeof(float) || !room_->owns(shard)) return refused;
    auto best = std::make_shared<std::vector<float>>(n);
    return BulkPlace{{std::as_writable_bytes(std::span(*best))}, best};
  }
  const uint64_t runs = bytes / (n * sizeof(float));
  if (bytes % (n * sizeof(float)) != 0 || (runs != 3 && runs != 4)) return refused;
  auto copy = std::make_shared<Copy>();
  copy->state.offset = range.begin;
  BulkPlace place;
  for (auto* run : {&copy->state.weights, &copy->state.m, &copy->state.v, &copy->best}) {
    if (place.parts.size() == runs) break;
    run->resize(n);
    place.parts.push_back(std::as_writable_bytes(std::span(*run)));
  }
  place.owner = std::move(copy);
  return place;
}

void PartSink::piece_here(const BulkTag& tag, const BulkPlace& place) {
  std::lock_guard lock(mutex_);
  const auto shard = static_cast<uint32_t>(tag.key);
  if (static_cast<BulkKind>(tag.kind) == BulkKind::kBest) {
    const auto best = std::static_pointer_cast<const std::vector<float>>(place.owner);
    if (keeper_) return caf::anon_send(keeper_, BestHere{shard, best});
    early_.push_back({shard, best});  // while the part waits for its data
    return;
  }
  if (!keeper_) return;
  const auto copy = std::static_pointer_cast<const Copy>(place.owner);
  KeepPiece order{shard, {tag.step}, nullptr, nullptr, false};
  order.state = {copy, &copy->state};
  if (!copy->best.empty()) order.best = {copy, &copy->best};
  caf::anon_send(keeper_, std::move(order));
}

}  // namespace fastserve
