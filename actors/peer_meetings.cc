#include "actors/peer_meetings.h"

namespace fastserve {

using messages::PeerMet;
using wire_messages::PartOrder;
using wire_messages::Place;

namespace {

constexpr auto kPatience = std::chrono::seconds(10);  // to be dialled

Status meet(const NodeParts& node, const Place& place) {
  if (!node.hub->connected(place.node) && node.name < place.node) FS_TRY(node.dial(place));
  return node.hub->wait_for({place.node}, kPatience);
}

}  // namespace

Status PeerMeetings::open(
    const PartOrder& order, PeerList& peers,
    const std::function<void(const std::string& node, const Error& why)>& gone) {
  std::vector<std::string> names{kCoordinatorPeer};
  for (const Place& peer : order.peers) {
    if (peer.node == node_->name) continue;
    if (node_->name < peer.node && !node_->hub->connected(peer.node))
      if (const Status dialled = node_->dial(peer); !dialled.ok()) {
        gone(peer.node, dialled.error());
        return dialled;
      }
    peers.add(peer.node);
    if (!order.joining) names.push_back(peer.node);
  }
  const Status met = node_->hub->wait_for(names, kPatience);
  for (const std::string& name : names)
    if (!met.ok() && !node_->hub->connected(name)) gone(name, met.error());
  return met;
}

void PeerMeetings::begin(DeputyActor::pointer deputy, const Place& place) {
  const uint64_t attempt = wanted_[place.node] = ++attempts_;
  const auto meeting = [node = node_, place, attempt,
                        deputy = DeputyActor(deputy)](caf::event_based_actor*) {
    caf::anon_send(deputy, PeerMet{place.node, attempt, meet(*node, place)});
  };
  deputy->system().spawn<caf::detached>(meeting);
  caf::logger::set_current_actor_system(nullptr);
}

bool PeerMeetings::all(const PeerList& peers) const {
  if (!wanted_.empty()) return false;
  for (const std::string& peer : peers.all())
    if (!node_->hub->connected(peer)) return false;
  return true;
}

bool PeerMeetings::end(const PeerMet& met) {
  const auto it = wanted_.find(met.node);
  if (it == wanted_.end() || it->second != met.attempt) return false;
  wanted_.erase(it);
  return true;
}

}  // namespace fastserve
