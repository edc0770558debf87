#include "actors/remoting.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <future>
#include <map>
#include <mutex>
#include <optional>

#include "actors/remoting_broker.h"
#include "net/basp_guard.h"
#include "net/tunnel.h"

namespace fastserve {
namespace {

using std::chrono::seconds;
using Guard = BaspGuard;

constexpr auto kHeartbeat = seconds(1);
constexpr auto kSilence = seconds(5);

Error stopping() { return {ErrorCode::kUnavailable, "the actor system is stopping", "", ""}; }

Guard::NodeId id_of(caf::actor_system& system) {
  std::vector<char> bytes;
  caf::binary_serializer sink(system, bytes);
  caf::node_id node = system.node();
  FS_CHECK(!sink(node));
  Guard::NodeId id;
  FS_CHECK(bytes.size() == sizeof(uint64_t) + id.size());
  std::transform(bytes.begin() + sizeof(uint64_t), bytes.end(), id.begin(),
                 [](char c) { return static_cast<std::byte>(c); });
  return id;
}

/// One connection, from the stream to CAF.
class Link {
 public:
  enum class Phase : uint8_t { kJoining, kOpen, kQuiet };  // quiet: nobody is to be told

  Link(int64_t number, Phase phase, Remoting::Closed closed)
      : number_(number), phase_(phase), closed_(std::move(closed)) {}

  int64_t number() const { return number_; }

  /// The peer's actor, or why there is none.
  Result<caf::strong_actor_ptr> wait(const std::set<std::string>& signatures,
                                     caf::actor_system& system, Nanoseconds timeout) {
    std::unique_lock lock(mutex_);
    const bool told = changed_.wait_for(lock, timeout, [&] { return found_ || failed_; });
    if (failed_) return *failed_;
    phase_ = Phase::kQuiet;
    if (!told)
      return Error{ErrorCode::kDeadlineExceeded, "does not answer as an actor system", "",
                   "see whether the node runs"};
    if (found_->first == nullptr)
      return Error{ErrorCode::kUnavailable, "is not ready yet", "", "try again later"};
    if (!signatures.empty() && !system.assignable(found_->second, signatures))
      return Error{
          ErrorCode::kUnsupported, "does not understand what this version says", "",
          "the two sides run versions that do not speak with each other: update the older"};
    phase_ = Phase::kOpen;
    return std::move(found_->first);
  }

  void found(caf::strong_actor_ptr actor, std::set<std::string> signatures) {
    const std::lock_guard lock(mutex_);
    found_.emplace(std::move(actor), std::move(signatures));
    changed_.notify_all();
  }
  /// The tunnel's last word.
  void ended(const Error& why) {
    std::unique_lock lock(mutex_);
    failed_ = why;
    found_.reset();
    changed_.notify_all();
    const bool tell = phase_ == Phase::kOpen;
    phase_ = Phase::kQuiet;
    const Remoting::Closed closed = std::move(closed_);
    lock.unlock();
    if (tell && closed) closed(why);
  }

  void dig(std::unique_ptr<Tunnel> tunnel) {
    const std::lock_guard lock(mutex_);
    tunnel_ = std::move(tunnel);
  }
  void close(const Error& why) {
    const std::lock_guard lock(mutex_);
    if (tunnel_ != nullptr) tunnel_->close(why);
  }
  bool finished() {
    const std::lock_guard lock(mutex_);
    return tunnel_ == nullptr || tunnel_->finished();
  }
  /// Its end waits for the tunnel's last word: not with a lock.
  std::unique_ptr<Tunnel> give_tunnel() {
    const std::lock_guard lock(mutex_);
    return std::move(tunnel_);
  }

  std::optional<Guard::NodeId> node;  // once the peer has introduced itself; the state's lock

 private:
  const int64_t number_;
  std::mutex mutex_;
  std::condition_variable changed_;
  Phase phase_;
  std::unique_ptr<Tunnel> tunnel_;
  std::optional<std::pair<caf::strong_actor_ptr, std::set<std::string>>> found_;
  std::optional<Error> failed_;
  Remoting::Closed closed_;
};

}  // namespace

struct Remoting::State {
  explicit State(caf::actor_system& given)
      : system(given), middleman(dynamic_cast<RemotingMiddleman&>(system.middleman())) {
    broker_actor = middleman.named_broker<RemotingBroker>(caf::atom("remoting"));
    broker = static_cast<RemotingBroker*>(caf::actor_cast<caf::abstract_actor*>(broker_actor));
    // See TrainingSystem: a thread that has spawned must let go of the system's logger.
    caf::logger::set_current_actor_system(nullptr);
    guard.self = id_of(system);
    for (const auto& [name, make] : system.config().value_factories_by_name)
      if (!name.starts_with('@')) guard.message_types.insert(name);
  }

  Result<std::shared_ptr<Link>> open(std::unique_ptr<Stream> stream, Guard::Peer peer,
                                     Closed closed);
  Status met(const std::shared_ptr<Link>& link, const Guard::NodeId& node);
  void reap();
  /// Calls `act` with the broker on the middleman's thread, and waits.
  template <class Act>
  Status on_broker(Act act);

  caf::actor_system& system;
  RemotingMiddleman& middleman;
  caf::actor broker_actor;
  RemotingBroker* broker = nullptr;
  Guard::Options guard;

  std::mutex mutex;
  std::map<int64_t, std::shared_ptr<Link>> links;
  int64_t numbers = 0;
};

template <class Act>
Status Remoting::State::on_broker(Act act) {
  auto done = std::make_shared<std::promise<void>>();
  auto waiting = done->get_future();
  middleman.backend().post(
      [broker = broker, actor = broker_actor, act, done = std::move(done)]() mutable {
        if (!broker->getf(caf::abstract_actor::is_terminated_flag)) {
          act(*broker);
          done->set_value();
        }
        done.reset();
      });
  // A loop that has stopped drops what is posted; one that lives is never long about anything.
  if (waiting.wait_for(kSilence) != std::future_status::ready) return stopping();
  try {
    waiting.get();
  } catch (const std::future_error&) {
    return stopping();
  }
  return {};
}

Result<std::shared_ptr<Link>> Remoting::State::open(std::unique_ptr<Stream> stream,
                                                    Guard::Peer peer, Closed closed) {
  reap();
  FS_ASSIGN(LocalPair pair, make_local_pair());
  const bool answers = peer == Guard::Peer::kCaller;
  std::shared_ptr<Link> link;
  {
    const std::lock_guard lock(mutex);
    link = std::make_shared<Link>(++numbers, answers ? Link::Phase::kOpen : Link::Phase::kJoining,
                                  std::move(closed));
  }
  auto scribe = RemotingBroker::make_scribe(middleman, std::move(pair.speaker), link->number(),
                                            [weak = std::weak_ptr(link)](const Error& why) {
                                              if (const auto exceeding = weak.lock())
                                                exceeding->close(why);
                                            });
  FS_TRY(on_broker([scribe, link, answers](RemotingBroker& broker) {
    if (answers) return broker.answer(scribe);
    broker.call(scribe, [link](caf::strong_actor_ptr actor, std::set<std::string> signatures) {
      link->found(std::move(actor), std::move(signatures));
    });
  }));
  Guard::Options options = guard;
  options.peer = peer;
  options.met = [this, weak = std::weak_ptr(link)](const Guard::NodeId& node) -> Status {
    const auto met_link = weak.lock();
    return met_link != nullptr ? met(met_link, node) : Status(stopping());
  };
  const std::lock_guard lock(mutex);  // nobody is met before the link is in the table
  // Without a tunnel its socket ends here, and that tells CAF.
  FS_ASSIGN(auto tunnel,
            Tunnel::start(std::move(stream), std::move(pair.tunnel),
                          std::make_unique<BaspGuard>(std::move(options)), {.silence = kSilence},
                          [link](const Error& why) { link->ended(why); }));
  link->dig(std::move(tunnel));
  links[link->number()] = link;
  return link;
}

/// A peer has said who it is. CAF keeps to the connection that it has with a node and takes any
/// further one for a spare, so an older one has to be gone before CAF hears of this: also one whose
/// link was reaped, of which CAF may not have heard yet. The broker is asked in any case, behind
/// what reap() has told it.
Status Remoting::State::met(const std::shared_ptr<Link>& link, const Guard::NodeId& node) {
  std::vector<std::shared_ptr<Link>> older;
  {
    const std::lock_guard lock(mutex);
    link->node = node;
    for (const auto& [number, other] : links)
      if (other != link && other->node == node) older.push_back(other);
  }
  for (const auto& other : older)
    other->close({ErrorCode::kUnavailable, "was replaced by a newer connection", "", ""});
  return on_broker([older](RemotingBroker& at) {
    for (const auto& other : older) at.drop(other->number());
  });
}

void Remoting::State::reap() {
  std::vector<std::shared_ptr<Link>> done;  // destroyed without the lock
  std::vector<int64_t> dropped;
  const std::lock_guard lock(mutex);
  for (auto at = links.begin(); at != links.end();) {
    const bool finished = at->second->finished();
    if (finished) {
      dropped.push_back(at->first);
      done.push_back(std::move(at->second));
    }
    at = finished ? links.erase(at) : std::next(at);
  }
  if (dropped.empty()) return;
  middleman.backend().post([broker = broker, actor = broker_actor, dropped] {
    if (broker->getf(caf::abstract_actor::is_terminated_flag)) return;
    for (const int64_t number : dropped) broker->drop(number);
  });
}

void Remoting::configure(caf::actor_system_config& config) {
  config.load<RemotingMiddleman>();
  config.set("middleman.workers", size_t{0});
  config.set("middleman.heartbeat-interval", caf::timespan(kHeartbeat));
  // A second line: the tunnel notices first, and says so.
  config.set("middleman.connection-timeout", caf::timespan(kSilence + kHeartbeat));
  config.set("middleman.enable-automatic-connections", false);
}

Remoting::Remoting(caf::actor_system& system) : state_(std::make_unique<State>(system)) {}

Remoting::~Remoting() {
  std::vector<std::unique_ptr<Tunnel>> tunnels;  // each end waits for its thread: without the lock
  {
    const std::lock_guard lock(state_->mutex);
    for (auto& [number, link] : state_->links) {
      link->close({ErrorCode::kCancelled, "this side is shutting down", "", ""});
      tunnels.push_back(link->give_tunnel());
    }
  }
  tunnels.clear();
}

caf::actor_system& Remoting::system() const { return state_->system; }

Status Remoting::publish(const caf::strong_actor_ptr& front, std::set<std::string> signatures) {
  FS_CHECK(front != nullptr);
  return state_->on_broker(
      [front, signatures](RemotingBroker& broker) { broker.publish(front, signatures); });
}

Status Remoting::adopt(std::unique_ptr<Stream> stream, Closed closed) {
  FS_TRY(state_->open(std::move(stream), Guard::Peer::kCaller, std::move(closed)));
  return {};
}

Result<caf::strong_actor_ptr> Remoting::join(std::unique_ptr<Stream> stream,
                                             const std::set<std::string>& signatures,
                                             Nanoseconds timeout, Closed closed) {
  const std::string whom = stream->peer();
  FS_ASSIGN(const auto link,
            state_->open(std::move(stream), Guard::Peer::kAnswerer, std::move(closed)));
  auto actor = link->wait(signatures, state_->system, timeout);
  if (actor.ok()) return actor;
  Error why = std::move(actor).error();
  if (why.where.empty()) why.where = whom;
  link->close(why);
  (void)state_->on_broker([link](RemotingBroker& broker) { broker.drop(link->number()); });
  return why;
}

}  // namespace fastserve
