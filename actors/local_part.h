// How a deputy leads what its node does by itself. For deputy.cc alone.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "actors/local_server.h"

namespace fastserve {

/// Carries LocalRounds' orders to the node's ranges.
class LocalPart {
 public:
  /// `work` must outlive this. `report` hears of units that are done.
  LocalPart(DeputyActor::pointer self, std::shared_ptr<PartRoom> room, NodeWork& work,
            std::vector<LocalServerActor> servers,
            std::function<void(const NodeWork::UnitDone&)> report)
      : self_(self),
        room_(std::move(room)),
        rounds_(room_->spec, work, room_->ranges),
        servers_(std::move(servers)),
        report_(std::move(report)) {}

  LocalRounds& rounds() { return rounds_; }
  void carry_out(LocalRounds::Orders orders) {
    for (auto& order : orders) std::visit([this](auto& it) { carry_out(it); }, order);
  }
  void weights_here(messages::WeightsHere& here) {
    self_->send(servers_[here.shard], std::move(here));
  }
  void restore(const messages::MomentsHere& here) {
    const std::span<const float> both(*here.both);
    const auto restore = [&](auto& range) {
      range.restore(both.first(both.size() / 2), both.subspan(both.size() / 2),
                    static_cast<int64_t>(room_->order.step));
    };
    if (!room_->local.empty())
      restore(*room_->local[here.shard]);
    else
      restore(*room_->loose[here.shard]);
  }
  /// All weights are those of `step`, or of this version, for the first time.
  void open(StepId step) {
    for (const auto& range : room_->local) range->open(step);
    for (const auto& range : room_->loose) range->open(LooseRange::segment_of(step));
  }
  /// How the gate counts the weights on which all nodes meet at `step`.
  StepId weights_of(StepId step) const {
    return room_->loose.empty() ? step : LooseRange::version(step);
  }

 private:
  template <class Order>
  void carry_out(const Order& order) {
    for (const LocalServerActor& server : servers_) self_->send(server, order);
  }
  void carry_out(const LocalRounds::Done& done) { report_(done.unit); }

  DeputyActor::pointer self_;
  const std::shared_ptr<PartRoom> room_;
  LocalRounds rounds_;
  const std::vector<LocalServerActor> servers_;
  const std::function<void(const NodeWork::UnitDone&)> report_;
};

}  // namespace fastserve
