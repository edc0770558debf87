#include "actors/cluster_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "actors/cluster_restore.h"
#include "model/parameters.h"
#include "train/sampler.h"
#include "train/token_file.h"

namespace fastserve {

using namespace messages;

namespace {

constexpr auto kLook = std::chrono::milliseconds(100);
constexpr int kMostFailures = 50;  // incarnations in a row that complete no step

std::shared_ptr<const std::vector<float>> share(std::vector<float> values) {
  if (values.empty()) return nullptr;
  return std::make_shared<const std::vector<float>>(std::move(values));
}

}  // namespace

TrainingRun::TrainingRun(Around around, TrainingSystem::Config config, std::string id,
                         std::function<void(const ClusterRun&)> changed)
    : around_(std::move(around)),
      config_(std::move(config)),
      id_(std::move(id)),
      changed_(std::move(changed)) {}

TrainingRun::~TrainingRun() {
  if (!writer_) return;
  // It holds the job's folder: whoever goes on with the job finds it free.
  caf::scoped_actor self(*around_.actors);
  self->send_exit(writer_, caf::exit_reason::kill);
  self->wait_for(writer_);
  caf::logger::set_current_actor_system(nullptr);  // see TrainingSystem
}

bool TrainingRun::cancelled() const {
  return around_.closing->raised() || (config_.cancel != nullptr && config_.cancel->raised());
}

void TrainingRun::say(const std::string& waiting_for) {
  told_.waiting_for = waiting_for;
  if (changed_) changed_(told_);
}

Status TrainingRun::open() {
  TrainSpec& spec = config_.spec;
  FS_TRY(spec.validate());
  if (spec.reduce != GradientReduce::kTree)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("is {}, and that is for the cards of one process; nodes of a cluster "
                             "sum along the step's tree",
                             reduce_text(spec.reduce)),
                 "reduce", "--reduce tree, or leave it out"};
  FS_CHECK(config_.dataset != nullptr && config_.checkpoint_directory);
  const Dataset& data = *config_.dataset;
  FS_ASSIGN(checkpoints_, CheckpointDirectory::open(*config_.checkpoint_directory));
  if (config_.ledger) {
    FS_ASSIGN(ledger_, LedgerFile::open(*config_.ledger));
  }
  FS_TRY(load_newest());
  plan_ = plan_training(spec, {1, 1, 1}, 1);
  spec.microbatches = plan_.microbatches;
  const Sampler sampler(data.train, Sampler::Shape{spec.block, plan_.sequences, plan_.microbatches},
                        spec.seed);
  windows_ = sampler.windows();
  spec.steps = resolve_steps(spec, windows_);
  if (data.validation.size() > 1) {
    const EvaluationPlan evaluation(data.validation, spec.block, spec.evaluate_sequences,
                                    plan_.max_rows);
    evaluation_chunks_ = evaluation.chunks();
    evaluation_counted_ = evaluation.counted();
  }
  const auto file = [](const TokenArray& tokens) {
    return std::make_shared<const std::string>(encode_token_file({tokens, 0, {}}));
  };
  train_file_ = file(data.train);
  if (data.validation.size() > 0) validation_file_ = file(data.validation);
  config_.log.info(fmt::format(
      "job {}: consistency {}{}, gradients {}, weights back {}", id_, spec.consistency.text(),
      spec.consistency.local() ? fmt::format(" (outer rate {}, momentum {})",
                                             spec.outer_learning_rate, spec.outer_momentum)
                               : "",
      spec.gradients.text(), spec.weights_back.text()));
  header_ = {spec, {}, config_.tokenizer_json, data.fingerprint, ""};
  if (weights_ == nullptr) FS_TRY(first_weights());
  return {};
}

Status TrainingRun::first_weights() {
  const ParameterLayout layout(config_.spec.model);
  std::vector<float> weights = std::move(config_.initial_weights);
  if (weights.empty()) {
    weights.resize(layout.elements());
    initialise_parameters(config_.spec.model, layout, config_.spec.seed, weights);
  }
  if (weights.size() != layout.elements())
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("holds {} weights, and the model has {}", weights.size(), layout.elements()),
        "initial weights", ""};
  weights_ = share(std::move(weights));
  return {};
}

Status TrainingRun::load_newest() {
  CheckpointRestore restore({{around_.actors, around_.hub, around_.next_incarnation,
                              [this] { return cancelled(); }, config_.log},
                             [nodes = around_.nodes] { return nodes->connected_by_name(); },
                             [this](const std::string& whom) {
                               if (told_.waiting_for == whom) return;
                               config_.log.info(fmt::format("job {} waits for {}", id_, whom));
                               say(whom);
                             },
                             around_.clock},
                            *checkpoints_, id_);
  FS_ASSIGN(auto newest, restore.newest());
  if (!newest) return {};
  TrainSpec& spec = config_.spec;
  if (spec.microbatches == 0) spec.microbatches = newest->header.spec.microbatches;
  FS_TRY(check_resumable(newest->header, spec, config_.dataset->fingerprint));
  state_ = newest->header.state;
  header_.numerics_id = newest->header.numerics_id;
  weights_ = share(std::move(newest->weights));
  m_ = share(std::move(newest->m));
  v_ = share(std::move(newest->v));
  best_ = share(std::move(newest->best));
  return {};
}

std::vector<JobNode> TrainingRun::wait_for_nodes() {
  for (;;) {
    if (cancelled()) return {};
    std::vector<JobNode> nodes = around_.nodes->usable(header_.numerics_id);
    const auto any = [&](auto member) { return std::any_of(nodes.begin(), nodes.end(), member); };
    const bool trains = any([](const JobNode& node) { return node.trains; });
    if (trains && any([](const JobNode& node) { return node.serves; })) {
      say("");
      return nodes;
    }
    const char* wanted = trains ? "a node with the role parameter-server" : "a node that trains";
    if (told_.waiting_for != wanted) {
      config_.log.info(fmt::format("job {} waits for {}", id_, wanted));
      say(wanted);
    }
    std::this_thread::sleep_for(kLook);
  }
}

std::shared_ptr<ConductorParts> TrainingRun::conductor_parts(std::vector<JobNode> nodes) {
  auto parts = std::make_shared<ConductorParts>();
  parts->job = around_.next_incarnation();
  parts->name = id_;
  parts->spec = config_.spec;
  parts->plan = plan_;
  parts->windows = windows_;
  parts->evaluation_chunks = evaluation_chunks_;
  parts->evaluation_counted = evaluation_counted_;
  parts->nodes = std::move(nodes);
  parts->state = state_;
  parts->weights = weights_;
  parts->m = m_;
  parts->v = v_;
  parts->best = best_;
  parts->train_file = train_file_;
  parts->validation_file = validation_file_;
  parts->data_fingerprint = config_.dataset->fingerprint;
  parts->hub = around_.hub;
  parts->clock = around_.clock;
  parts->cancel = config_.cancel;
  parts->writer = writer_;
  parts->collector = collector_;
  parts->ledger = ledger_;
  parts->progress = [this](const TrainProgress& progress) {
    reached_ = std::max<int64_t>(reached_, progress.step);
    if (config_.progress) config_.progress(progress);
  };
  parts->members = std::make_shared<MemberTable>();
  parts->apart = [nodes = around_.nodes](const std::string& node, const std::string& peer) {
    nodes->apart(node, peer);
  };
  parts->failed = [nodes = around_.nodes](const std::string& node, const Error& why) {
    nodes->failed(node, why);
  };
  parts->log = config_.log;
  parts->completion = std::make_shared<Completion>();
  return parts;
}

Result<TrainOutcome> TrainingRun::incarnation(std::vector<JobNode> nodes) {
  std::string names;
  for (const JobNode& node : nodes) names += (names.empty() ? "" : ", ") + node.name;
  told_.incarnation++;
  say("");
  config_.log.info(fmt::format("job {}: incarnation {} from step {} on {}", id_, told_.incarnation,
                               state_.steps_done, names));
  const auto parts = conductor_parts(std::move(nodes));
  around_.nodes->watch(parts->members, id_, plan_);
  caf::scoped_actor self(*around_.actors);
  const auto driver = self->spawn<caf::detached>(conductor, parts);
  self->send(driver, Begin{});
  while (!parts->completion->wait_for(kLook)) {
    if (around_.closing->raised()) break;
    if (const int copies = *parts->copies; copies != std::exchange(told_.replicas, copies)) say("");
    const auto members = parts->members->all();
    for (const JobNode& node : around_.nodes->usable(header_.numerics_id))
      if (!members.contains(node.name)) self->send(driver, NodeJoins{node});
    for (const auto& [name, member] : members)
      if (around_.nodes->draining(name))
        self->send(driver, PeerGone{name, {ErrorCode::kUnavailable, "is being drained", "", ""}});
  }
  self->send_exit(driver, caf::exit_reason::user_shutdown);
  self->wait_for(driver);
  if (parts->coordinator) self->wait_for(parts->coordinator);  // it reports to this
  around_.nodes->watch(nullptr, id_, plan_);
  settle_writer();
  return parts->completion->wait();
}

void TrainingRun::start_writer() {
  caf::scoped_actor self(*around_.actors);
  if (!config_.spec.node_checkpoints) {
    writer_ = self->spawn<caf::detached>(checkpoint_writer, checkpoints_, header_, ledger_);
    return;
  }
  const auto keep = [nodes = around_.nodes](const wire_messages::KeepPieces& order) {
    for (const NodeActor& node : nodes->connected()) caf::anon_send(node, order);
  };
  collector_ = self->spawn<caf::detached>(
      piece_collector,
      PieceCollectorParts{checkpoints_, header_, ledger_, id_,
                          ParameterLayout(config_.spec.model).elements(), config_.log, keep});
  writer_ = collector_;
}

void TrainingRun::settle_writer() {
  caf::scoped_actor self(*around_.actors);
  self->request(writer_, std::chrono::minutes(10), Settle{})
      .receive([](bool) {}, [](const caf::error&) {});
}

Result<TrainOutcome> TrainingRun::run() {
  auto outcome = run_to_the_end();
  caf::logger::set_current_actor_system(nullptr);  // see TrainingSystem
  return outcome;
}

Result<TrainOutcome> TrainingRun::run_to_the_end() {
  FS_TRY(open());
  int failures = 0;
  for (;;) {
    std::vector<JobNode> nodes = wait_for_nodes();
    if (nodes.empty())
      return Error{ErrorCode::kCancelled, "stopped while no nodes were there", "job " + id_, ""};
    header_.numerics_id =
        around_.nodes->find(nodes.front().name).value_or(wire_messages::NodeHello{}).numerics;
    if (!writer_) start_writer();
    const int64_t before = reached_;
    auto outcome = incarnation(std::move(nodes));
    if (outcome.ok() || outcome.error().code != ErrorCode::kUnavailable || cancelled())
      return outcome;
    config_.log.warning(fmt::format("job {}: {}; it goes on from its last checkpoint", id_,
                                    outcome.error().message()));
    failures = reached_ > before ? 0 : failures + 1;
    if (failures >= kMostFailures) return outcome;
    FS_TRY(load_newest());
    told_.replayed_steps += std::max<int64_t>(0, reached_ - state_.steps_done);
    std::this_thread::sleep_for(kLook);
  }
}

}  // namespace fastserve
