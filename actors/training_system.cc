#include "actors/training_system.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>

#include "actors/coordinator.h"
#include "actors/memory.h"
#include "actors/parameter_server.h"
#include "actors/trainer.h"
#include "cpu/cpu_device.h"
#include "train/cards_backend.h"
#include "train/optimiser_place.h"
#include "train/split_backend.h"

namespace fastserve {
namespace {

constexpr int kMostActors = 1024;

Status check_count(const char* what, int count) {
  if (count >= 0 && count <= kMostActors) return {};
  return Error{ErrorCode::kInvalidArgument, fmt::format("is {}", count), what,
               fmt::format("give 1 to {}, or 0 to have it chosen", kMostActors)};
}

}  // namespace

struct TrainingSystem::State {
  explicit State(Config given) : config(std::move(given)) {}
  ~State();

  Status open();
  std::vector<DeviceFactory> all_devices() const {
    std::vector<DeviceFactory> all = config.more_devices;
    all.insert(all.begin(), config.make_device);
    return all;
  }
  Status check_counts() const;
  Status make_plan();
  Status open_backend();
  Result<std::shared_ptr<TrainBackend>> make_backend();
  Status place_weights();
  Status resume();
  Status check_data() const;
  Status start_actors();
  std::shared_ptr<CoordinatorParts> coordinator_parts(const JobState& state, int shard_count);
  const Clock& clock() const { return config.clock != nullptr ? *config.clock : system_clock; }

  Config config;
  SystemClock system_clock;
  TrainPlan plan;
  std::vector<std::unique_ptr<Device>> devices;  // with memory of their own; until the backend has
                                                 // them
  bool resident = false;                         // the optimiser works there, too
  Recompute recompute = Recompute::kNone;        // without such a device
  std::shared_ptr<TrainBackend> backend;
  std::unique_ptr<Sampler> sampler;
  std::unique_ptr<EvaluationPlan> evaluation;
  std::vector<std::unique_ptr<GradientPool>> pools;  // one for each member of the backend
  WeightsGate gate;
  std::optional<Turns> turns;
  std::shared_ptr<CheckpointDirectory> checkpoints;
  std::shared_ptr<LedgerFile> ledger;
  std::optional<Checkpoint> resumed;
  std::shared_ptr<Completion> completion = std::make_shared<Completion>();
  uint64_t planned_memory = 0, peak_memory = 0;
  std::atomic<bool> closing = false;

  caf::actor_system_config actor_config;
  std::optional<caf::actor_system> actors;
  CoordinatorActor coordinator_handle;
  CheckpointWriterActor writer;
  std::vector<TrainerActor> trainers;
  std::vector<ParameterServerActor> shards;
};

TrainingSystem::State::~State() {
  closing = true;
  // The actors know each other, so none would ever be unreferenced: each is told to go.
  const auto dismiss = [](const auto& actor) {
    if (actor) caf::anon_send_exit(actor, caf::exit_reason::kill);
  };
  for (const auto& trainer : trainers) dismiss(trainer);
  for (const auto& shard : shards) dismiss(shard);
  dismiss(writer);
  dismiss(coordinator_handle);
  trainers.clear();
  shards.clear();
  writer = nullptr;
  coordinator_handle = nullptr;
  actors.reset();  // waits for all of them
}

Status TrainingSystem::State::open() {
  FS_TRY(check_for_one_process(config.spec));
  TrainSpec& spec = config.spec;
  FS_CHECK(config.dataset != nullptr);
  if (config.backend == nullptr) FS_TRY(spec.validate());
  FS_TRY(check_counts());
  FS_TRY(check_data());
  const uint64_t given = config.initial_weights.size() * sizeof(float);  // freed once copied
  const uint64_t held = process_memory();
  if (config.checkpoint_directory) {
    FS_ASSIGN(checkpoints, CheckpointDirectory::open(*config.checkpoint_directory));
    FS_TRY(resume());
  }
  if (config.ledger) {
    FS_ASSIGN(ledger, LedgerFile::open(*config.ledger));
  }
  FS_TRY(make_plan());
  planned_memory += held - std::min(held, given);
  sampler = std::make_unique<Sampler>(config.dataset->train,
                                      Sampler::Shape{spec.block, plan.sequences, plan.microbatches},
                                      spec.seed);
  spec.steps = resolve_steps(spec, sampler->windows());
  if (config.dataset->validation.size() > 1)
    evaluation = std::make_unique<EvaluationPlan>(config.dataset->validation, spec.block,
                                                  spec.evaluate_sequences, plan.max_rows);
  FS_TRY(open_backend());
  return start_actors();
}

Status TrainingSystem::State::check_counts() const {
  FS_TRY(check_count("trainers", config.placement.trainers));
  FS_TRY(check_count("shards", config.placement.shards));
  return check_count("lanes", config.placement.lanes);
}

Status TrainingSystem::State::make_plan() {
  TrainSpec& spec = config.spec;
  if (config.make_host) {
    FS_ASSIGN(devices, open_cards(all_devices()));
    FS_CHECK(!devices.front()->host_memory());
    if (config.placement.trainers == 0)  // one for a device; of cores each may have its own
      config.placement.trainers = static_cast<int>(devices.size());
    FS_ASSIGN(const auto host, config.make_host(1));
    const std::string before = resumed ? resumed->header.numerics_id : "";
    FS_ASSIGN(resident, place_optimiser(devices, *host, before, usable_cores(), config.log, spec,
                                        config.placement));
  }
  plan = plan_training(spec, config.placement, usable_cores());
  FS_TRY(check_reduce(spec, plan));
  spec.microbatches = plan.microbatches;
  recompute = config.placement.recompute.value_or(Recompute::kNone);
  const auto estimate = [&] {
    const MemoryEstimate need = estimate_memory(spec, plan, checkpoints != nullptr, recompute);
    return devices.empty() ? need : need.beside_a_device(spec, resident);
  };
  planned_memory = estimate().total();
  if (config.backend != nullptr) return {};
  Status fits = check_memory(estimate(), config.memory_limit);
  if (fits.ok() || !devices.empty() || config.placement.recompute) return fits;
  recompute = Recompute::kLayer;
  planned_memory = estimate().total();
  return check_memory(estimate(), config.memory_limit);
}

Status TrainingSystem::State::check_data() const {
  const Dataset& data = *config.dataset;
  if (data.train.size() <= static_cast<size_t>(config.spec.block))
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("is {}, and there are {} tokens to train on", config.spec.block,
                             data.train.size()),
                 "block", "add text, or choose a smaller block"};
  const int largest = std::max(data.train.largest(), data.validation.largest());
  if (config.backend != nullptr || largest < config.spec.model.vocab_size) return {};
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("hold the token {}, outside the model's vocabulary of {}", largest,
                           config.spec.model.vocab_size),
               "the data", "use the tokenizer that belongs to the model"};
}

Status TrainingSystem::State::resume() {
  if (config.resume == Resume::kNever) {
    if (!checkpoints->newest(Log())) return {};
    return Error{ErrorCode::kAlreadyExists, "holds the checkpoints of another job",
                 checkpoints->path().string(), "resume that job, or use another directory"};
  }
  resumed = checkpoints->newest(config.log);
  if (resumed && resumed->pieces) return needs_its_nodes(*resumed->pieces, resumed->path);
  if (!resumed) {
    if (config.resume == Resume::kIfThere) return {};
    return Error{ErrorCode::kNotFound, "holds no whole checkpoint to resume from",
                 checkpoints->path().string(), "start the job afresh"};
  }
  if (config.spec.microbatches == 0) config.spec.microbatches = resumed->header.spec.microbatches;
  return check_resumable(resumed->header, config.spec, config.dataset->fingerprint);
}

Result<std::shared_ptr<TrainBackend>> TrainingSystem::State::make_backend() {
  if (config.backend != nullptr) return config.backend;
  if (!config.make_device) {
    FS_ASSIGN(config.make_device, cpu_devices());
  }
  const TrainSpec& spec = config.spec;
  const auto& wanted = config.placement.recompute;
  Result<std::unique_ptr<TrainBackend>> made =
      resident && devices.size() > 1
          ? make_cards_backend(spec.model, spec.precision, std::move(devices), config.link, plan,
                               wanted, config.log)
      : resident ? make_resident_backend(spec.model, spec.precision, std::move(devices.front()),
                                         plan, wanted)
      : !devices.empty()
          ? make_split_backend(spec.model, spec.precision, std::move(devices.front()),
                               in_turn(all_devices()), config.make_host, wanted)
          : make_device_backend(spec.model, spec.precision, config.make_device, {}, recompute);
  devices.clear();
  if (!made.ok()) return made.error();
  return std::shared_ptr<TrainBackend>(std::move(*made));
}

Status TrainingSystem::State::open_backend() {
  FS_ASSIGN(backend, make_backend());
  FS_TRY(place_weights());
  if (resumed && resumed->header.numerics_id != backend->numerics_id())
    config.log.warning(
        fmt::format("the checkpoint was computed on {} and goes on on {}: the result "
                    "is as good, but not the same bits",
                    resumed->header.numerics_id, backend->numerics_id()));
  return {};
}

Status TrainingSystem::State::place_weights() {
  const std::span<float> masters = backend->masters();
  const std::vector<float>& given = resumed ? resumed->weights : config.initial_weights;
  if (!given.empty()) {
    if (given.size() != masters.size())
      return Error{
          ErrorCode::kInvalidArgument,
          fmt::format("holds {} weights, and the model has {}", given.size(), masters.size()),
          resumed ? resumed->path.string() : "initial weights", ""};
    backend->copy_in(masters.data(), given);
  } else {
    FS_CHECK(config.backend == nullptr);
    const ParameterLayout layout(config.spec.model);
    std::vector<float> fresh(backend->host_memory() ? 0 : masters.size());
    initialise_parameters(config.spec.model, layout, config.spec.seed,
                          backend->host_memory() ? masters : fresh);
    if (!fresh.empty()) backend->copy_in(masters.data(), fresh);
  }
  config.initial_weights = {};
  backend->refresh_all();
  return backend->sync();
}

std::shared_ptr<CoordinatorParts> TrainingSystem::State::coordinator_parts(const JobState& state,
                                                                           int shard_count) {
  auto driven = std::make_shared<CoordinatorParts>();
  TrainingJob::Setup setup;
  setup.spec = config.spec;
  setup.plan = plan;
  setup.shards = shard_count;
  setup.windows = sampler->windows();
  if (evaluation != nullptr) {
    setup.evaluation_chunks = evaluation->chunks();
    setup.evaluation_counted = evaluation->counted();
  }
  setup.checkpoints = checkpoints != nullptr;
  setup.runs = backend->reduces();
  setup.clock = &clock();
  setup.cancel = config.cancel;
  driven->job = std::make_unique<TrainingJob>(std::move(setup), state);
  driven->weights = [this]() -> Result<std::vector<float>> {
    std::vector<float> weights(backend->elements());
    backend->copy_out(weights, backend->masters().data());
    FS_TRY(backend->sync());
    return weights;
  };
  if (resumed && !resumed->best.empty())
    driven->best = std::make_shared<const std::vector<float>>(std::move(resumed->best));
  driven->progress = config.progress;
  if (ledger != nullptr) {
    LedgerBegin begin = beginning(config.spec, plan, sampler->windows(), state);
    begin.incarnation = ledger->last_incarnation() + 1;
    const auto name = [](TrainerId trainer) { return fmt::format("trainer-{}", trainer.value); };
    driven->committed = keep_in(ledger, begin, name, config.log);
  }
  driven->look_at_memory = [this] { peak_memory = std::max(peak_memory, process_memory()); };
  driven->complete_outcome = [this](TrainOutcome& outcome) {
    outcome.peak_memory_bytes = peak_memory;
    outcome.planned_memory_bytes = planned_memory;
  };
  driven->log = config.log;
  driven->completion = completion;
  return driven;
}

Status TrainingSystem::State::start_actors() {
  std::vector<std::shared_ptr<GradientWorker>> workers;
  for (int i = 0; i < backend->members(); i++)
    pools.push_back(std::make_unique<GradientPool>(
        [member = &backend->member(i)] {
          return member->allocate(member->elements() * sizeof(float));
        },
        0, i));
  const auto cancelled = [this] {
    return closing.load() || (config.cancel != nullptr && config.cancel->raised());
  };
  for (int i = 0; i < plan.trainers; i++) {
    const int card = plan.card_of_trainer(i);
    FS_ASSIGN(auto source, backend->member(card).make_source(plan.lanes_of(i), plan.max_rows));
    if (i == 0) recompute = source->recompute();
    workers.push_back(std::make_shared<GradientWorker>(
        std::move(source), *sampler, evaluation.get(), *pools[size_t(card)], cancelled, &gate));
  }
  const JobState state = resumed ? resumed->header.state : JobState{};
  const StepLayout layout(static_cast<uint32_t>(plan.microbatches));
  std::vector<std::shared_ptr<ParameterShard>> parts;
  const std::vector<ParameterShard::Range> ranges = ParameterShard::ranges(*backend, plan.shards);
  gate.divide(ranges.size());
  turns.emplace(static_cast<int>(ranges.size()));  // as many as there are lanes, all at once
  for (const auto& range : ranges) {
    TrainBackend& member = backend->member(
        plan.card_of_shard(static_cast<int>(parts.size()), static_cast<int>(ranges.size())));
    std::unique_ptr<DeviceBuffer> moments;
    if (!member.host_memory()) {
      FS_ASSIGN(moments, member.allocate(2 * (range.end - range.begin) * sizeof(float)));
    }
    parts.push_back(std::make_shared<ParameterShard>(
        member, range, config.spec, layout, StepId{static_cast<uint64_t>(state.steps_done)},
        std::move(moments)));
    if (resumed) parts.back()->restore(resumed->m, resumed->v);
  }
  const auto driven = coordinator_parts(state, static_cast<int>(parts.size()));
  CheckpointHeader header{config.spec, state, config.tokenizer_json, config.dataset->fingerprint,
                          backend->numerics_id()};
  if (resumed) resumed->weights = resumed->m = resumed->v = {};
  try {
    actor_config.set("scheduler.max-threads", size_t{1});  // the actors here are all detached
    actor_config.set("scheduler.policy", caf::atom("sharing"));
    actors.emplace(actor_config);
    coordinator_handle = actors->spawn<caf::detached>(coordinator, driven);
    for (uint32_t i = 0; i < parts.size(); i++)
      shards.push_back(actors->spawn<caf::detached>(
          parameter_server, ShardId{i},
          ParameterServerParts{parts[i], &gate, &*turns, {}, config.log}, coordinator_handle));
    for (uint32_t i = 0; i < workers.size(); i++)
      trainers.push_back(actors->spawn<caf::detached>(trainer, TrainerId{i}, workers[i],
                                                      coordinator_handle, shards,
                                                      ParameterShard::begins(ranges)));
    if (checkpoints != nullptr)
      writer =
          actors->spawn<caf::detached>(checkpoint_writer, checkpoints, std::move(header), ledger);
  } catch (const std::exception& error) {
    return Error{ErrorCode::kResourceExhausted,
                 std::string("the actors cannot be started: ") + error.what(), "",
                 "use fewer trainers or shards"};
  }
  // CAF leaves a reference to the system's logger with a thread that spawns, and the system's end
  // waits for all of them: on another thread it would wait for ever.
  caf::logger::set_current_actor_system(nullptr);
  driven->trainers = trainers;
  driven->shards = shards;
  driven->writer = writer;
  caf::anon_send(coordinator_handle, messages::Begin{});
  return {};
}

TrainingSystem::TrainingSystem(std::unique_ptr<State> state) : state_(std::move(state)) {}
TrainingSystem::~TrainingSystem() = default;

Result<std::unique_ptr<TrainingSystem>> TrainingSystem::start(Config config) {
  auto state = std::make_unique<State>(std::move(config));
  FS_TRY(state->open());
  return std::unique_ptr<TrainingSystem>(new TrainingSystem(std::move(state)));
}

Result<TrainOutcome> TrainingSystem::wait() { return state_->completion->wait(); }

void TrainingSystem::kill_trainer(int i) {
  caf::anon_send_exit(state_->trainers[static_cast<size_t>(i)], caf::exit_reason::kill);
}

int TrainingSystem::trainers() const { return static_cast<int>(state_->trainers.size()); }
const TrainSpec& TrainingSystem::spec() const { return state_->config.spec; }

std::string TrainingSystem::description() const {
  const TrainPlan& plan = state_->plan;
  const std::string device = state_->backend->description();  // "cpu avx512-bf16, 1 lane"
  const auto count = [](size_t n, const char* what) {
    return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s");
  };
  return fmt::format(
      "{}, {}, {}; {}, {}; {} of up to {} tokens{}{}{}", device.substr(0, device.find(',')),
      precision_name(state_->config.spec.precision), count(static_cast<size_t>(plan.lanes), "lane"),
      count(state_->trainers.size(), "trainer"), count(state_->shards.size(), "parameter server"),
      plan.microbatches == 1 ? "1 microbatch" : fmt::format("{} microbatches", plan.microbatches),
      plan.max_rows, state_->resident ? "; optimiser on the device" : "",
      state_->backend->reduces() ? "; gradients summed over a ring" : "",
      state_->recompute == Recompute::kLayer ? "; layers recomputed" : "");
}

}  // namespace fastserve
