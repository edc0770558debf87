#include "actors/cluster_coordinator.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "actors/cluster_run.h"
#include "actors/node_table.h"
#include "actors/remoting.h"
#include "actors/ticket.h"

namespace fastserve {

using namespace wire_messages;

namespace {

constexpr auto kLastWord = std::chrono::milliseconds(300);

/// Answers nodes that come, and hears of those that go.
RegistryActor::behavior_type registry(RegistryActor::pointer self, std::shared_ptr<NodeTable> table,
                                      const ClusterCoordinator::Config& config) {
  const uint64_t epoch = config.epoch;
  const Log log = config.log;
  self->set_down_handler([=](const caf::down_msg& message) {
    if (const auto name = table->down(message.source))
      log.warning(fmt::format("node {} is gone", *name));
  });
  return {
      [=, jobs = config.jobs](const NodeHello& hello, const NodeActor& node) {
        const Status status = table->hello(hello, node);
        if (!status.ok()) {
          log.warning(status.error().message());
          return Welcome{to_fault(status.error()), epoch};
        }
        self->monitor(node);
        log.info(fmt::format("node {} has come: {} lanes, {}", hello.place.node, hello.lanes,
                             hello.device));
        self->send(node, Duties{table->duties(hello.place.node)});
        if (jobs) self->send(node, KeepJobs{jobs()});
        return Welcome{{}, epoch};
      },
      [=, renew = config.renew](const Renew& ask) {
        const auto claim = table->claim_of(ask);
        if (!claim.ok()) return Renewed{to_fault(claim.error()), ""};
        const Error cannot{ErrorCode::kUnsupported, "does not renew certificates",
                           "this coordinator", ""};
        const auto next = renew ? renew(*claim, ask.request) : Result<std::string>(cannot);
        if (!next.ok()) return Renewed{to_fault(next.error()), ""};
        log.info(fmt::format("node {} has its next certificate", ask.node));
        return Renewed{{}, *next};
      },
      [=, admitted = config.admitted](const AskPeer& ask) {
        NodeClaim claim;
        claim.cluster = ask.cluster;
        claim.node = ask.node;
        claim.key = ask.key;
        const Status status = admitted ? admitted(claim) : Status();
        return PeerAnswer{status.ok() ? Fault() : to_fault(status.error())};
      },
      [=](const NodeTick& tick) { table->tick(tick); },
      [=, duty_reports = config.duty_reports](const DutiesReported& said) {
        if (duty_reports && table->speaks_for(said.node, said.process))
          duty_reports(said.node, said.reports);
      },
  };
}

}  // namespace

struct ClusterCoordinator::State {
  explicit State(Config given)
      : config(std::move(given)), nodes(std::make_shared<NodeTable>(*config.clock)) {}
  ~State() {
    closing.raise();
    std::unique_lock lock(mutex);
    idle.wait(lock, [&] { return running == 0; });
    lock.unlock();
    if (front) caf::anon_send_exit(front, caf::exit_reason::kill);
    front = nullptr;
    remoting = nullptr;
    hub->end();
    nodes = nullptr;
    actors.reset();
  }

  /// By which a node can be cut off.
  uint64_t keep_connection(const std::string& node, const Stream& stream) {
    std::lock_guard lock(mutex);
    connections[node] = {++connections_made, StreamCut(stream)};
    return connections_made;
  }
  void drop_connection(const std::string& node, uint64_t number) {
    std::lock_guard lock(mutex);
    const auto it = connections.find(node);
    if (it != connections.end() && it->second.first == number) connections.erase(it);
  }

  Config config;
  CancelFlag closing;
  std::mutex mutex;
  std::condition_variable idle;
  int running = 0;  // jobs
  uint64_t connections_made = 0;
  std::map<std::string, std::pair<uint64_t, StreamCut>>
      connections;  // for control: the newest of each
  std::atomic<uint32_t> incarnations{0};
  std::shared_ptr<NodeTable> nodes;
  const std::unique_ptr<LaneHub> hub = std::make_unique<LaneHub>();
  caf::actor_system_config actor_config;
  std::optional<caf::actor_system> actors;
  std::unique_ptr<Remoting> remoting;
  RegistryActor front;
};

ClusterCoordinator::ClusterCoordinator(std::unique_ptr<State> state) : state_(std::move(state)) {}
ClusterCoordinator::~ClusterCoordinator() = default;

Result<std::unique_ptr<ClusterCoordinator>> ClusterCoordinator::start(Config config) {
  auto state = std::make_unique<State>(std::move(config));
  try {
    add_message_types(state->actor_config);
    Remoting::configure(state->actor_config);
    state->actor_config.set("scheduler.max-threads", size_t{2});
    state->actors.emplace(state->actor_config);
    state->remoting = std::make_unique<Remoting>(*state->actors);
    state->front = state->actors->spawn(registry, state->nodes, state->config);
  } catch (const std::exception& error) {
    return Error{ErrorCode::kResourceExhausted,
                 std::string("the actors cannot be started: ") + error.what(), "", ""};
  }
  caf::logger::set_current_actor_system(nullptr);
  FS_TRY(state->remoting->publish(state->front));
  return std::unique_ptr<ClusterCoordinator>(new ClusterCoordinator(std::move(state)));
}

void ClusterCoordinator::stop() { state_->closing.raise(); }

void ClusterCoordinator::control_connected(TlsConnection connection) {
  const std::string node = connection.claim->node;
  const Log& log = state_->config.log;
  const Status sent =
      send_ticket(*connection.stream, state_->nodes->issue_ticket(*connection.claim));
  if (!sent.ok()) return log.warning(fmt::format("node {}: {}", node, sent.error().message()));
  const auto number = state_->keep_connection(node, *connection.stream);
  const Status adopted = state_->remoting->adopt(
      std::move(connection.stream), [state = state_.get(), node, number](const Error& why) {
        state->drop_connection(node, number);
        state->config.log.debug(fmt::format("node {}: {}", node, why.message()));
      });
  if (!adopted.ok()) log.warning(fmt::format("node {}: {}", node, adopted.error().message()));
}

void ClusterCoordinator::bulk_connected(TlsConnection connection) {
  const std::string node = connection.claim->node;
  const Status adopted = state_->hub->adopt(node, std::move(connection).all_streams());
  if (!adopted.ok())
    state_->config.log.warning(fmt::format("node {}: {}", node, adopted.error().message()));
}

std::vector<NodeStatus> ClusterCoordinator::nodes() const { return state_->nodes->all(); }

void ClusterCoordinator::set_draining(const std::string& node, bool draining) {
  state_->nodes->set_draining(node, draining);
}

void ClusterCoordinator::set_duties(const std::string& node, const std::string& orders) {
  if (const NodeActor actor = state_->nodes->set_duties(node, orders))
    caf::anon_send(actor, Duties{orders});
}

void ClusterCoordinator::forget_pieces(const std::string& job) {
  KeepPieces none;
  none.job = job;
  for (const NodeActor& node : state_->nodes->connected()) caf::anon_send(node, none);
}

void ClusterCoordinator::forget(const std::string& node) {
  const NodeActor actor = state_->nodes->forget(node);
  StreamCut connection;
  {
    std::lock_guard lock(state_->mutex);
    const auto it = state_->connections.find(node);
    if (it != state_->connections.end()) connection = std::move(it->second.second);
    state_->connections.erase(node);
  }
  for (const NodeActor& other : state_->nodes->connected()) caf::anon_send(other, DropPeer{node});
  if (!actor) return;
  caf::anon_send(
      actor, Dismissed{to_fault({ErrorCode::kInvalidArgument, "has been removed from the cluster",
                                 "node " + node, "join again with a new token to come back"})});
  std::this_thread::sleep_for(kLastWord);  // it is to hear that, and then nothing more
  connection.cut();
  state_->hub->drop(node);
}

Result<TrainOutcome> ClusterCoordinator::train(TrainingSystem::Config config, const std::string& id,
                                               const std::function<void(const ClusterRun&)>& run) {
  {
    std::lock_guard lock(state_->mutex);
    state_->running++;
  }
  TrainingRun job(
      {&*state_->actors, state_->hub.get(), state_->nodes, &state_->closing, state_->config.clock,
       state_->config.log,
       [state = state_.get()] { return state->config.epoch << 32 | ++state->incarnations; }},
      std::move(config), id, run);
  auto outcome = job.run();
  std::lock_guard lock(state_->mutex);
  state_->running--;
  state_->idle.notify_all();
  return outcome;
}

}  // namespace fastserve
