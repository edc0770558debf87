// Connects a node's part of a job to nodes that join later. For actors/ alone.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "actors/part_room.h"

namespace fastserve {

/// Dials beside the deputy, or waits there to be dialled: a node that does not answer holds nothing
/// up. Of two nodes the one whose name comes first dials.
///
/// Threads: the deputy's; each meeting takes one of its own, for seconds at most.
class PeerMeetings {
 public:
  explicit PeerMeetings(std::shared_ptr<const NodeParts> node) : node_(std::move(node)) {}

  /// Before the part begins, which waits for it: everybody there is. One that joins is dialled by
  /// nobody yet: the others are told of it later. `gone` is told who cannot be reached.
  Status open(const wire_messages::PartOrder& order, PeerList& peers,
              const std::function<void(const std::string& node, const Error& why)>& gone);
  /// The deputy is sent PeerMet.
  void begin(DeputyActor::pointer deputy, const wire_messages::Place& place);
  /// Whether the node is connected to all of them, and nobody else is to be met.
  bool all(const PeerList& peers) const;
  /// Nobody wants to meet it any more.
  void drop(const std::string& node) { wanted_.erase(node); }
  /// Whether this is the end of the meeting that is wanted: not one of those before.
  bool end(const messages::PeerMet& met);

 private:
  std::shared_ptr<const NodeParts> node_;
  std::map<std::string, uint64_t> wanted_;  // the newest attempt
  uint64_t attempts_ = 0;
};

}  // namespace fastserve
