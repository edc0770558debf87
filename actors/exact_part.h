// The shards of an exact job that a node holds, or is to hold. For deputy.cc alone.
#pragma once

#include <map>
#include <vector>

#include "actors/part_room.h"

namespace fastserve {

messages::Apply to_apply(const wire_messages::ApplyShard& order);

/// Brings the node's parameter servers about: those that it begins with, and those of shards that
/// it comes to hold while the job runs.
///
/// Threads: the deputy's.
class ExactPart {
 public:
  /// What is spawned is put into `own`, to be ended with the deputy.
  ExactPart(DeputyActor::pointer self, std::shared_ptr<PartRoom> room,
            std::vector<caf::strong_actor_ptr>& own);

  /// Whom the node's trainers push to, for each shard: its parameter server, or a slice sender.
  std::vector<ParameterServerActor> begin();
  template <class Order>
  void to_shard(uint32_t shard, Order order) {
    if (const auto server = room_->servers.get(shard)) self_->send(server, std::move(order));
  }
  /// Who holds what has changed. Weights that the lost one may not have sent are sent now.
  void held_by(ShardHolders holders);
  void joined(const std::string& peer);
  /// Whether this node has the copy now; false when it comes too late.
  bool copy_here(const messages::CopyHere& copy);

 private:
  ParameterServerActor serve(uint32_t shard);

  DeputyActor::pointer self_;
  const std::shared_ptr<PartRoom> room_;
  std::vector<caf::strong_actor_ptr>& own_;
  std::map<uint32_t, StepId> copied_;  // when, of shards that it came to hold
};

}  // namespace fastserve
