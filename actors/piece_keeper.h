// What becomes of the copies that a node's part makes of its shards. For actors/ alone.
#pragma once

#include <deque>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "actors/part_room.h"

namespace fastserve {

/// Writes pieces to the node's disk, sends copies of them, and tells the conductor. Keeps the best
/// weights of the node's shards in memory. It waits for the disk: spawn it detached.
PieceKeeperActor::behavior_type piece_keeper(PieceKeeperActor::pointer self,
                                             std::shared_ptr<PartRoom> room,
                                             ConductorActor conductor);

/// Carries what shards copy to where it belongs: to the coordinator, or to the piece keeper.
class PartCopies {
 public:
  /// `keeper`: null when the coordinator keeps the checkpoints.
  PartCopies(std::shared_ptr<PartRoom> room, ConductorActor conductor, PieceKeeperActor keeper)
      : room_(std::move(room)),
        conductor_(std::move(conductor)),
        keeper_(std::move(keeper)),
        ordered_(room_->ranges.size()) {}

  /// Whether the shard is to make a copy now: then copied() follows, in order.
  bool ordered(const wire_messages::CopyShard& order);
  void copied(const std::shared_ptr<const ShardState>& part);
  /// A node joins that may keep copies: from when its lane is there until it leaves.
  void joins(const std::string& node) { joining_.insert(node); }
  void met(const std::string& node);
  void left(const std::string& node);

 private:
  void send(wire_messages::BulkKind tensor, uint32_t shard,
            const std::shared_ptr<const ShardState>& part) const;

  const std::shared_ptr<PartRoom> room_;
  const ConductorActor conductor_;
  const PieceKeeperActor keeper_;
  std::vector<std::deque<wire_messages::CopyShard>> ordered_;  // by shard
  std::set<std::string> joining_;
};

}  // namespace fastserve
