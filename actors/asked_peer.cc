#include "actors/asked_peer.h"

#include <vector>

namespace fastserve {

void AskedPeer::ask(caf::actor_id whom, const caf::strong_actor_ptr& asker,
                    caf::message_id question) {
  const std::lock_guard lock(mutex_);
  open_[{asker->id(), question.request_id().integer_value()}] = {
      whom, caf::actor_cast<caf::actor_addr>(asker), question};
}

void AskedPeer::answered(caf::actor_id asker, caf::message_id answer) {
  const std::lock_guard lock(mutex_);
  open_.erase({asker, answer.request_id().integer_value()});
}

void AskedPeer::end(caf::actor_id whom) {
  std::vector<Question> ended;  // told without the lock
  {
    const std::lock_guard lock(mutex_);
    for (auto at = open_.begin(); at != open_.end();) {
      const bool ends = at->second.whom == whom;
      if (ends) ended.push_back(std::move(at->second));
      at = ends ? open_.erase(at) : std::next(at);
    }
  }
  const caf::error gone = caf::exit_reason::remote_link_unreachable;
  for (const Question& question : ended)
    if (const auto asker = caf::actor_cast<caf::strong_actor_ptr>(question.asker))
      asker->enqueue(nullptr, question.id.response_id(), caf::make_message(gone), nullptr);
}

size_t AskedPeer::open_questions() const {
  const std::lock_guard lock(mutex_);
  return open_.size();
}

/// A proxy that has ended drops what it is sent. The question is noted first, so that either
/// kill_proxy() finds it, which ends questions last, or it is seen here that the end has been.
void RemoteActor::enqueue(caf::mailbox_element_ptr what, caf::execution_unit* unit) {
  const bool asks = what->mid.is_request() && what->sender != nullptr;
  if (asks) peer_->ask(id(), what->sender, what->mid);
  forwarding_actor_proxy::enqueue(std::move(what), unit);
  if (asks && getf(is_terminated_flag)) peer_->end(id());
}

void RemoteActor::kill_proxy(caf::execution_unit* unit, caf::error why) {
  forwarding_actor_proxy::kill_proxy(unit, std::move(why));
  peer_->end(id());
}

}  // namespace fastserve
