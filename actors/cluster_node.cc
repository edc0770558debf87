#include "actors/cluster_node.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <thread>

#include "actors/dials.h"
#include "actors/node_part.h"
#include "actors/piece_shelf.h"
#include "actors/remoting.h"
#include "actors/ticket.h"
#include "base/entropy.h"
#include "cpu/cpu_device.h"
#include "train/device_backend.h"

namespace fastserve {

using namespace wire_messages;

namespace {

constexpr auto kLook = std::chrono::milliseconds(50);
constexpr auto kTick = std::chrono::seconds(1);
constexpr auto kReports = std::chrono::milliseconds(200);  // of duties, at most so often
constexpr auto kRenewals = std::chrono::hours(1);          // between looks whether one is due
constexpr auto kAnswer = std::chrono::seconds(5);

/// The coordinator's last word to the node.
struct Dismissal {
  std::optional<Error> said() {
    std::lock_guard lock(mutex);
    return why;
  }
  std::mutex mutex;
  std::optional<Error> why;
};

/// Takes orders from the coordinator; each part is an actor of its own.
NodeActor::behavior_type node_actor(NodeActor::pointer self, std::shared_ptr<const NodeParts> parts,
                                    std::shared_ptr<Dismissal> dismissal,
                                    std::function<Status(const std::string&)> duties) {
  const auto shelf = self->spawn<caf::detached>(piece_shelf, parts);
  self->attach_functor(
      [shelf](const caf::error&) { caf::anon_send_exit(shelf, caf::exit_reason::kill); });
  return {
      [=](const AskPieces& ask) { return self->delegate(shelf, ask); },
      [=](const SendPiece& order) { return self->delegate(shelf, order); },
      [=](const KeepPieces& order) { self->send(shelf, order); },
      [=](const KeepJobs& order) { self->send(shelf, order); },
      [=](const PartOrder& order, const ConductorActor& conductor) {
        const auto part = self->spawn<caf::detached>(deputy, parts, order, conductor);
        caf::logger::set_current_actor_system(nullptr);
        self->send(part, messages::Begin{});
      },
      [=](const DropPeer& removed) { parts->hub->drop(removed.node); },
      [=](const Duties& given) {
        const Status kept = duties ? duties(given.orders) : Status();
        if (!kept.ok()) parts->log.warning(kept.error().message());
      },
      [=](const Dismissed& dismissed) {
        std::lock_guard lock(dismissal->mutex);
        dismissal->why = to_error(dismissed.fault);
      },
  };
}

uint64_t random_word() {
  uint64_t word = 0;
  fill_with_entropy(std::as_writable_bytes(std::span(&word, 1)));
  return word;
}

/// While it lives, others may ask the coordinator, too.
class Connected {
 public:
  Connected(std::mutex& mutex, RegistryActor& known, const RegistryActor& coordinator)
      : mutex_(mutex), known_(known) {
    std::lock_guard lock(mutex_);
    known_ = coordinator;
  }
  ~Connected() {
    std::lock_guard lock(mutex_);
    known_ = nullptr;
  }
  Connected(const Connected&) = delete;
  Connected& operator=(const Connected&) = delete;

 private:
  std::mutex& mutex_;
  RegistryActor& known_;
};

}  // namespace

struct ClusterNode::State {
  explicit State(Config given) : config(std::move(given)) {}
  ~State() {
    if (node) caf::anon_send_exit(node, caf::exit_reason::kill);
    node = nullptr;
    remoting = nullptr;  // the parts end with their conductors
    hub->end();          // or sinks would keep actors; parts that end later still know the hub
    actors.reset();
  }

  /// One connection from beginning to end; an Error when the node is refused for good.
  Status stay_connected(const CancelFlag& cancel);
  template <class Answer, class... Question>
  Result<Answer> ask(const RegistryActor& coordinator, Question... question);
  Status say_hello(const RegistryActor& registry, const std::string& ticket);
  NodeHello hello(const std::string& ticket) const;
  void tick(const RegistryActor& registry);
  void report_duties(const RegistryActor& registry);
  void keep_bulk_lane();
  Status ask_of(const NodeClaim& peer, const RegistryActor& coordinator);
  void look_at_peers(const RegistryActor& coordinator);
  void know(const TlsConnection& peer);
  void renew(const RegistryActor& registry);

  Config config;
  const uint64_t process = random_word();
  std::string device, numerics;
  const std::unique_ptr<LaneHub> hub = std::make_unique<LaneHub>();
  Dials dials;
  caf::actor_system_config actor_config;
  std::optional<caf::actor_system> actors;
  std::unique_ptr<Remoting> remoting;
  NodeActor node;
  std::mutex mutex;                        // guards what follows
  RegistryActor registry;                  // null: not connected
  std::map<std::string, NodeClaim> peers;  // by name: whom lanes are, or were, to
  const std::shared_ptr<Dismissal> dismissal = std::make_shared<Dismissal>();
  std::string last_trouble;  // said once
  std::string said_of_duties;
  Nanoseconds reported_at{0};
};

ClusterNode::ClusterNode(std::unique_ptr<State> state) : state_(std::move(state)) {}
ClusterNode::~ClusterNode() = default;

Result<std::unique_ptr<ClusterNode>> ClusterNode::start(Config config) {
  auto state = std::make_unique<State>(std::move(config));
  State* const at = state.get();
  if (!at->config.make_device) {
    FS_ASSIGN(at->config.make_device, cpu_devices());
  }
  FS_ASSIGN(at->numerics, training_numerics(at->config.make_device, at->config.make_host));
  FS_ASSIGN(const auto device, at->config.make_device(at->config.lanes));
  std::vector<DeviceFactory> devices = at->config.more_devices;
  devices.insert(devices.begin(), at->config.make_device);
  at->device =
      (devices.size() > 1 ? fmt::format("{} x ", devices.size()) : "") + device->description();
  auto parts = std::make_shared<NodeParts>();
  parts->name = at->config.name;
  parts->lanes = at->config.lanes;
  parts->devices = std::move(devices);
  parts->make_host = at->config.make_host;
  parts->data_folder = at->config.data_folder;
  const Path& pieces = at->config.pieces_folder;
  FS_ASSIGN(parts->pieces,
            PieceStore::open(pieces.empty() ? at->config.data_folder / "checkpoints" : pieces));
  parts->hub = at->hub.get();
  parts->clock = at->config.clock;
  parts->log = at->config.log;
  parts->dial = [at](const Place& place) -> Status {
    return at->dials.connect(*at->hub, place.node, [&]() -> Status {
      FS_ASSIGN(TlsConnection connection, at->config.dial_peer(place.node, place.host, place.port));
      at->know(connection);
      return at->hub->adopt(place.node, std::move(connection).all_streams());
    });
  };
  try {
    add_message_types(at->actor_config);
    Remoting::configure(at->actor_config);
    at->actor_config.set("scheduler.max-threads", size_t{1});
    at->actors.emplace(at->actor_config);
    at->remoting = std::make_unique<Remoting>(*at->actors);
    at->node =
        at->actors->spawn<caf::detached>(node_actor, parts, at->dismissal, at->config.duties);
  } catch (const std::exception& error) {
    return Error{ErrorCode::kResourceExhausted,
                 std::string("the actors cannot be started: ") + error.what(), "", ""};
  }
  caf::logger::set_current_actor_system(nullptr);
  return std::unique_ptr<ClusterNode>(new ClusterNode(std::move(state)));
}

Status ClusterNode::admitted(const NodeClaim& claim) {
  RegistryActor registry;
  {
    std::lock_guard lock(state_->mutex);
    registry = state_->registry;
  }
  if (registry) return state_->ask_of(claim, registry);
  return Error{ErrorCode::kUnavailable, "cannot ask the coordinator whether it belongs here",
               "node " + claim.node, ""};
}

void ClusterNode::bulk_connected(TlsConnection connection) {
  const std::string peer = connection.claim->node;
  state_->know(connection);
  const Status adopted = state_->hub->adopt(peer, std::move(connection).all_streams());
  if (!adopted.ok())
    state_->config.log.warning(fmt::format("node {}: {}", peer, adopted.error().message()));
}

NodeHello ClusterNode::State::hello(const std::string& ticket) const {
  NodeHello hello;
  hello.version = FASTSERVE_VERSION;
  hello.place = {config.name, config.host, static_cast<uint16_t>(config.port)};
  hello.roles = config.roles;
  hello.lanes = static_cast<uint32_t>(config.lanes);
  hello.device = device;
  hello.numerics = numerics;
  hello.process = process;
  hello.ticket = ticket;
  hello.unix_seconds = config.clock->unix_seconds();
  return hello;
}

template <class Answer, class... Question>
Result<Answer> ClusterNode::State::ask(const RegistryActor& coordinator, Question... question) {
  Result<Answer> got = Error();
  caf::scoped_actor self(*actors);
  self->request(coordinator, kAnswer, std::move(question)...)
      .receive([&](const Answer& answer) { got = answer; },
               [&](const caf::error& error) {
                 got = Error{ErrorCode::kUnavailable, "does not answer: " + actors->render(error),
                             "the coordinator", ""};
               });
  return got;
}

Status ClusterNode::State::say_hello(const RegistryActor& registry, const std::string& ticket) {
  FS_ASSIGN(const Welcome welcome, ask<Welcome>(registry, hello(ticket), node));
  return to_status(welcome.fault);
}

void ClusterNode::State::tick(const RegistryActor& registry) {
  const BulkLane::Counters counters = hub->counters();
  caf::anon_send(registry, NodeTick{config.name, config.clock->unix_seconds(), counters.bytes_sent,
                                    counters.bytes_received});
  said_of_duties.clear();  // again with each tick, should it have been lost
}

void ClusterNode::State::report_duties(const RegistryActor& registry) {
  const Nanoseconds now = config.clock->now();
  if (!config.duty_reports || now - reported_at < kReports) return;
  const std::string reports = config.duty_reports();
  if (reports == said_of_duties) return;
  said_of_duties = reports;
  reported_at = now;
  caf::anon_send(registry, DutiesReported{config.name, process, reports});
}

void ClusterNode::State::keep_bulk_lane() {
  if (hub->connected(kCoordinatorPeer)) return;
  auto connection = config.dial_bulk();
  if (!connection.ok()) return;  // the control connection says what is wrong
  [[maybe_unused]] const Status adopted =
      hub->adopt(kCoordinatorPeer, std::move(*connection).all_streams());
}

Status ClusterNode::State::ask_of(const NodeClaim& peer, const RegistryActor& coordinator) {
  FS_ASSIGN(const PeerAnswer answer,
            ask<PeerAnswer>(coordinator, AskPeer{peer.cluster, peer.node, peer.key}));
  return to_status(answer.fault);
}

void ClusterNode::State::know(const TlsConnection& peer) {
  if (!peer.claim) return;
  std::lock_guard lock(mutex);
  peers[peer.claim->node] = *peer.claim;
}

/// Who was removed while nobody could tell this node loses its lane now.
void ClusterNode::State::look_at_peers(const RegistryActor& coordinator) {
  std::map<std::string, NodeClaim> known;
  {
    std::lock_guard lock(mutex);
    known = peers;
  }
  // Of all that there are lanes to, at once: a coordinator that is busy is waited for once.
  caf::scoped_actor self(*actors);
  const auto ask_of = [&](const NodeClaim& peer) {
    return self->request(coordinator, kAnswer, AskPeer{peer.cluster, peer.node, peer.key});
  };
  std::vector<std::pair<std::string, decltype(ask_of(NodeClaim()))>> questions;
  for (const auto& [name, claim] : known)
    if (hub->connected(name)) questions.emplace_back(name, ask_of(claim));
  for (auto& [name, question] : questions) {
    Status status;
    question.receive([&](const PeerAnswer& answer) { status = to_status(answer.fault); },
                     [](const caf::error&) {});  // nobody says that it was removed
    if (status.ok() || status.error().code == ErrorCode::kUnavailable) continue;
    config.log.warning(status.error().message());
    hub->drop(name);
    std::lock_guard lock(mutex);
    peers.erase(name);
  }
}

void ClusterNode::State::renew(const RegistryActor& registry) {
  const auto request = config.renewal ? config.renewal() : std::nullopt;
  if (!request) return;
  const auto answer = ask<Renewed>(registry, Renew{config.name, process, *request});
  Status status = answer.ok() ? to_status(answer->fault) : Status(answer.error());
  if (status.ok()) status = config.renewed(answer->certificate);
  if (status.ok())
    config.log.info(fmt::format("node {} has its next certificate", config.name));
  else
    config.log.warning("the certificate was not renewed: " + status.error().message());
}

Status ClusterNode::State::stay_connected(const CancelFlag& cancel) {
  FS_ASSIGN(TlsConnection connection, config.dial_control());
  FS_ASSIGN(const std::string ticket, receive_ticket(*connection.stream, kAnswer));
  const auto closed = std::make_shared<std::atomic<bool>>(false);
  const auto why = std::make_shared<Error>();
  FS_ASSIGN(const auto registry, remoting->join<RegistryActor>(std::move(connection.stream),
                                                               kAnswer, [=](const Error& error) {
                                                                 *why = error;
                                                                 closed->store(true);
                                                               }));
  const Connected connected(mutex, this->registry, registry);
  FS_TRY(say_hello(registry, ticket));
  look_at_peers(registry);
  config.log.info(fmt::format("node {} is with its coordinator: {}", config.name, device));
  last_trouble.clear();
  said_of_duties.clear();
  Nanoseconds last{0}, renewed_at = config.clock->now() - kRenewals;
  while (!closed->load() && !cancel.raised()) {
    if (const auto said = dismissal->said()) return *said;
    keep_bulk_lane();
    const Nanoseconds now = config.clock->now();
    if (now - last >= kTick) {
      tick(registry);
      last = now;
    }
    report_duties(registry);
    if (now - renewed_at >= kRenewals) {
      renew(registry);
      renewed_at = now;
    }
    std::this_thread::sleep_for(kLook);
  }
  if (cancel.raised()) return {};
  return Error{ErrorCode::kUnavailable, "has closed the connection: " + why->message(),
               "the coordinator", ""};
}

Status ClusterNode::run(const CancelFlag& cancel) {
  Nanoseconds wait = std::chrono::milliseconds(200);
  while (!cancel.raised()) {
    const Nanoseconds before = state_->config.clock->now();
    const Status status = state_->stay_connected(cancel);
    caf::logger::set_current_actor_system(nullptr);
    if (status.ok()) continue;
    const ErrorCode code = status.error().code;
    if (state_->dismissal->said() || code == ErrorCode::kUnsupported ||
        code == ErrorCode::kInvalidArgument)
      return status;
    if (state_->last_trouble != status.error().message()) {
      state_->last_trouble = status.error().message();
      state_->config.log.warning(state_->last_trouble + "; trying again");
    }
    if (state_->config.clock->now() - before > std::chrono::seconds(5))
      wait = std::chrono::milliseconds(200);
    for (Nanoseconds slept{0}; slept < wait && !cancel.raised(); slept += kLook)
      std::this_thread::sleep_for(kLook);
    wait = std::min<Nanoseconds>(2 * wait, std::chrono::seconds(2));
  }
  return {};
}

}  // namespace fastserve
