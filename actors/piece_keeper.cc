#include "actors/piece_keeper.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "actors/state_tensors.h"

namespace fastserve {

using namespace messages;
using namespace wire_messages;

namespace {

class PieceKeeper {
 public:
  PieceKeeper(PieceKeeperActor::pointer self, std::shared_ptr<PartRoom> room,
              ConductorActor conductor)
      : self_(self),
        room_(std::move(room)),
        conductor_(std::move(conductor)),
        best_(room_->ranges.size()) {}

  void keep(KeepPiece& order) {
    if (order.owner && room_->order.best && best_[order.shard] == nullptr) {
      early_.push_back(std::move(order));  // the best is on its way here
      return;
    }
    if (order.owner) order.best = best_[order.shard];
    const auto& range = room_->ranges[order.shard];
    PieceKept kept;
    kept.job = room_->order.job;
    kept.node = room_->node->name;
    kept.piece = {room_->order.job, static_cast<int64_t>(order.step.value), range.begin, range.end};
    kept.owner = order.owner;
    if (order.owner) kept.copied_to = place_of_copy(order.shard);
    if (!kept.copied_to.empty()) send_copy(kept.copied_to, order);
    auto written = write(to_name(room_->order.name, kept.piece), order);
    if (written.ok())
      kept.hash = std::move(*written);
    else
      kept.fault = to_fault(named(std::move(written).error()));
    self_->send(conductor_, std::move(kept));
  }

  void spare(const SparePlace& place) {
    if (place.there)
      spare_.insert(place.node);
    else
      spare_.erase(place.node);
  }

  void best_here(const BestHere& here) {
    best_[here.shard] = here.weights;
    for (auto early = std::exchange(early_, {}); auto& order : early) keep(order);
  }

  void send_best(uint32_t shard) const {
    const auto& best = best_[shard];
    if (best != nullptr)
      room_->node->hub->send(kCoordinatorPeer,
                             {static_cast<uint64_t>(BulkKind::kBest), room_->order.job, 0, shard},
                             {{std::as_bytes(std::span(*best)), best}}, kAfterTheStep);
  }

 private:
  /// Where the job began on one node with parameters alone, others have joined since.
  std::string place_of_copy(uint32_t shard) const {
    const auto& copies = room_->order.copies;
    if (shard < copies.size() && !copies[shard].empty() && copies[shard] != room_->node->name)
      return copies[shard];
    return room_->spec.checkpoint_copies < 2 || spare_.empty() ? "" : *spare_.begin();
  }

  Result<std::string> write(const PieceName& name, const KeepPiece& order) const {
    PieceStore::Floats floats{order.state->weights, order.state->m, order.state->v, {}};
    if (order.best != nullptr) floats.best = *order.best;
    return room_->node->pieces->write(name, floats);
  }

  Error named(Error error) const {
    error.where =
        fmt::format("node {}{}{}", room_->node->name, error.where.empty() ? "" : ", ", error.where);
    room_->node->log.warning(fmt::format("job {}: a piece of its checkpoint is not kept: {}",
                                         room_->order.name, error.message()));
    return error;
  }

  void send_copy(const std::string& to, const KeepPiece& order) const {
    std::vector<BulkSource> parts = sources_of(order.state);
    if (order.best != nullptr) parts.push_back({std::as_bytes(std::span(*order.best)), order.best});
    room_->node->hub->send(to,
                           {static_cast<uint64_t>(BulkKind::kPieceCopy), room_->order.job,
                            order.step.value, order.shard},
                           std::move(parts), kAfterTheStep);
  }

  PieceKeeperActor::pointer self_;
  const std::shared_ptr<PartRoom> room_;
  const ConductorActor conductor_;
  std::vector<std::shared_ptr<const std::vector<float>>> best_;  // of each shard of this node's
  std::vector<KeepPiece> early_;
  std::set<std::string> spare_;
};

}  // namespace

PieceKeeperActor::behavior_type piece_keeper(PieceKeeperActor::pointer self,
                                             std::shared_ptr<PartRoom> room,
                                             ConductorActor conductor) {
  const auto keeper = std::make_shared<PieceKeeper>(self, std::move(room), std::move(conductor));
  return {
      [=](KeepPiece& order) { keeper->keep(order); },
      [=](const BestHere& here) { keeper->best_here(here); },
      [=](const SendBest& order) { keeper->send_best(order.shard); },
      [=](const SparePlace& place) { keeper->spare(place); },
  };
}

bool PartCopies::ordered(const CopyShard& order) {
  if (order.shard >= ordered_.size() || !room_->owns(order.shard)) return false;
  if (order.what == CopyShard::kFinalBest) {
    if (keeper_) caf::anon_send(keeper_, SendBest{order.shard});
    return false;
  }
  ordered_[order.shard].push_back(order);
  return true;
}

void PartCopies::met(const std::string& node) {
  if (keeper_ && joining_.erase(node) > 0) caf::anon_send(keeper_, SparePlace{node, true});
}

void PartCopies::left(const std::string& node) {
  joining_.erase(node);
  if (keeper_) caf::anon_send(keeper_, SparePlace{node, false});
}

void PartCopies::copied(const std::shared_ptr<const ShardState>& part) {
  const auto at = std::find_if(room_->ranges.begin(), room_->ranges.end(),
                               [&](const auto& range) { return range.begin == part->offset; });
  const auto shard = static_cast<uint32_t>(at - room_->ranges.begin());
  if (shard >= ordered_.size() || ordered_[shard].empty()) return;
  const CopyShard order = ordered_[shard].front();
  ordered_[shard].pop_front();
  if (order.what == CopyShard::kFinal) return send(BulkKind::kFinal, shard, part);
  const bool best = order.what == CopyShard::kBest;
  if (!keeper_) return send(best ? BulkKind::kBest : BulkKind::kState, shard, part);
  if (best) {
    const std::shared_ptr<const std::vector<float>> weights(part, &part->weights);
    return caf::anon_send(keeper_, BestHere{shard, weights});
  }
  caf::anon_send(keeper_, KeepPiece{shard, {order.step}, part, nullptr, true});
  caf::anon_send(conductor_, ShardCopied{shard, order.step});
}

void PartCopies::send(BulkKind tensor, uint32_t shard,
                      const std::shared_ptr<const ShardState>& part) const {
  room_->node->hub->send(kCoordinatorPeer,
                         {static_cast<uint64_t>(tensor), room_->order.job, part->step.value, shard},
                         sources_of(part), kAfterTheStep);
}

}  // namespace fastserve
