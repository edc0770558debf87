#include "actors/serving_system.h"

#include <fmt/format.h>

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "actors/server.h"
#include "actors/serving_begin.h"
#include "cpu/cpu_device.h"
#include "serve/chat.h"

namespace fastserve {
namespace {

/// One deployed model as callers from any thread see it.
struct Front {
  ServedModel info;  ///< but for weight_bytes
  ChatFormat chat;
  int most;                              ///< requests it holds at once
  std::atomic<int> accepted{0};          ///< of them without a last event yet
  std::atomic<int64_t> weight_bytes{0};  ///< 0 until it was loaded
  std::atomic<bool> on_device{false};    ///< but for weights that are still to come
};

}  // namespace

struct ServingSystem::State {
  ~State();
  Status start_actor();
  void report(const EngineHealth& now);
  void note_loaded();
  void note_turn(const EngineGroup::Turn& turn);
  std::optional<EngineGroup::Turns> turns_of(std::optional<ModelTurns> order);
  Result<size_t> find(const std::string& model) const;

  const Clock* clock = nullptr;
  SystemClock system_clock;
  Log log;
  std::string description;
  Nanoseconds started{0}, turn_began{0};
  std::unique_ptr<Device> device;  // outlives the engines
  std::vector<std::unique_ptr<Front>> fronts;
  std::shared_ptr<EngineGroup> engines;

  mutable std::mutex mutex;
  std::condition_variable ended_changed, loaded_changed;
  bool stopping = false, ended = false;
  bool load_over = false;  ///< with `load_failure` or without
  std::optional<Error> load_failure;
  EngineHealth figures;
  uint64_t next_id = 1;

  std::function<void(double)> progress;
  std::shared_ptr<CancelFlag> stop_loading;  // may be null
  caf::actor_system_config actor_config;
  std::optional<caf::actor_system> actors;
  ServerActor actor;
};

ServingSystem::State::~State() {
  actor = nullptr;
  actors.reset();  // waits for the actor, which was told to leave
}

/// On the server's thread.
void ServingSystem::State::report(const EngineHealth& now) {
  const bool loads = engines->loading();
  if (!loads && !load_over) note_loaded();
  const std::lock_guard lock(mutex);
  figures = now;
  if (loads || load_over) return;
  load_over = true;
  load_failure = engines->load_failure();
  loaded_changed.notify_all();
}

void ServingSystem::State::note_loaded() {
  const std::optional<Error> failure = engines->load_failure();
  if (failure) log.error("a model could not be loaded: " + failure->message());
  for (size_t i = 0; i < fronts.size(); ++i) {
    const Engine& engine = engines->engine(i);
    if (!engine.here()) {
      log.info(fmt::format("{}@{} waits on the host for its first request", fronts[i]->info.name,
                           fronts[i]->info.version));
      continue;
    }
    if (!engine.decoder().loaded()) continue;
    fronts[i]->weight_bytes = static_cast<int64_t>(engine.decoder().weight_bytes());
    fronts[i]->on_device = true;
    if (stop_loading) log.info(loaded_line(fronts[i]->info, engine.decoder()));
  }
  if (progress && !failure) progress(1.0);
  progress = {};
}

/// On the server's thread, too.
void ServingSystem::State::note_turn(const EngineGroup::Turn& turn) {
  if (!turn.over) {
    turn_began = clock->now();
    for (const size_t i : turn.left) fronts[i]->on_device = false;
    return;
  }
  std::vector<std::string> names;
  for (const auto& front : fronts) names.push_back(front->info.name + "@" + front->info.version);
  const std::string line = turn_line(names, turn, *engines, clock->now() - turn_began);
  if (turn.failure) return log.warning(line);
  Front& front = *fronts[turn.came];
  front.weight_bytes = static_cast<int64_t>(engines->engine(turn.came).decoder().weight_bytes());
  front.on_device = true;
  log.info(line);
}

std::optional<EngineGroup::Turns> ServingSystem::State::turns_of(std::optional<ModelTurns> order) {
  if (!order) return std::nullopt;
  return EngineGroup::Turns{*std::move(order), [this] { return device->available_memory(); },
                            [this](const EngineGroup::Turn& turn) { note_turn(turn); }};
}

Status ServingSystem::State::start_actor() {
  ServerParts parts;
  parts.engines = engines;
  parts.clock = clock;
  parts.report = [this](const EngineHealth& now) { report(now); };
  parts.ended = [this](const std::string& failure) {
    if (!failure.empty()) log.error("the server's thread failed: " + failure);
    const std::lock_guard lock(mutex);
    stopping = ended = true;
    ended_changed.notify_all();
    loaded_changed.notify_all();
  };
  try {
    // The one worker is the server's own thread: unlike a detached actor's, it is joined.
    actor_config.set("scheduler.max-threads", size_t{1});
    actor_config.set("scheduler.policy", caf::atom("sharing"));
    actors.emplace(actor_config);
    actor = actors->spawn(server, std::move(parts));
  } catch (const std::exception& error) {
    return Error{ErrorCode::kResourceExhausted,
                 std::string("the server's actor cannot be started: ") + error.what(), "",
                 "free some memory or threads"};
  }
  // CAF leaves a reference to the system's logger with a thread that spawns, and the system's end
  // waits for all of them: on another thread it would wait for ever.
  caf::logger::set_current_actor_system(nullptr);
  return {};
}

Result<size_t> ServingSystem::State::find(const std::string& model) const {
  std::string there;
  for (size_t i = 0; i < fronts.size(); ++i) {
    const ServedModel& info = fronts[i]->info;
    if (model == info.name || model == info.name + "@" + info.version) return i;
    there += (i > 0 ? ", " : "") + info.name;
  }
  if (model.empty() && fronts.size() == 1) return size_t{0};
  if (model.empty())
    return Error{ErrorCode::kInvalidArgument, "not given, and several models are deployed", "model",
                 "name one of: " + there};
  return Error{ErrorCode::kNotFound, "is not deployed", model, "deployed: " + there};
}

Result<std::shared_ptr<ServingSystem>> ServingSystem::start(Config config) {
  FS_ASSIGN(auto system, open(std::move(config)));
  FS_TRY(system->wait_until_loaded());
  return system;
}

Status ServingSystem::wait_until_loaded() {
  std::unique_lock lock(state_->mutex);
  state_->loaded_changed.wait(lock, [&] { return state_->load_over || state_->ended; });
  if (state_->load_failure) return *state_->load_failure;
  if (state_->load_over) return {};
  return Error{ErrorCode::kUnavailable, "the server stopped while its models were being loaded", "",
               "deploy them again"};
}

Result<std::shared_ptr<ServingSystem>> ServingSystem::open(Config config) {
  if (config.models.empty())
    return Error{ErrorCode::kInvalidArgument, "no model to serve", "models", "name one"};
  for (size_t i = 0; i < config.models.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (config.models[i].name == config.models[j].name)
        return Error{ErrorCode::kInvalidArgument, "given twice", config.models[i].name,
                     "deploy each model once"};
  const int lanes = config.lanes > 0 ? config.lanes : usable_cores();
  if (!config.make_device) {
    FS_ASSIGN(config.make_device, cpu_devices());
  }
  FS_ASSIGN(auto device, config.make_device(lanes));
  auto stop_loading = std::make_shared<CancelFlag>();
  FS_ASSIGN(BegunModels begun, begin_models(config, *device, stop_loading));
  config.models.clear();
  std::string description = device->description();
  return serve(std::move(config), std::move(begun.models), std::move(begun.turns),
               std::move(device), std::move(description), std::move(stop_loading));
}

Result<std::shared_ptr<ServingSystem>> ServingSystem::serve(Config config,
                                                            std::vector<LoadedModel> models,
                                                            std::unique_ptr<Device> device,
                                                            std::string description) {
  return serve(std::move(config), std::move(models), {}, std::move(device), std::move(description),
               {});
}

Result<std::shared_ptr<ServingSystem>> ServingSystem::serve(
    Config config, std::vector<LoadedModel> models, std::optional<ModelTurns> turns,
    std::unique_ptr<Device> device, std::string description,
    std::shared_ptr<CancelFlag> stop_loading) {
  auto state = std::make_unique<State>();
  state->clock = config.clock != nullptr ? config.clock : &state->system_clock;
  state->log = config.log;
  state->description = std::move(description);
  state->started = state->clock->now();
  state->device = std::move(device);
  state->stop_loading = std::move(stop_loading);
  state->progress = std::move(config.progress);
  std::vector<std::unique_ptr<Engine>> engines;
  for (LoadedModel& model : models) {
    state->fronts.push_back(std::unique_ptr<Front>(
        new Front{std::move(model.info), ChatFormat::from_documents(model.documents),
                  limits_of(config).max_waiting}));
    engines.push_back(std::move(model.engine));
  }
  state->engines = std::make_shared<EngineGroup>(
      std::move(engines), [s = state.get()](size_t i) { --s->fronts[i]->accepted; },
      state->turns_of(std::move(turns)));
  state->figures = state->engines->health();
  std::shared_ptr<ServingSystem> system(new ServingSystem(std::move(state)));
  FS_TRY(system->state_->start_actor());
  return system;
}

ServingSystem::ServingSystem(std::unique_ptr<State> state) : state_(std::move(state)) {}

ServingSystem::~ServingSystem() {
  if (state_->actor) stop(Stop::kCancel);
}

bool ServingSystem::stop(Stop how, Nanoseconds patience) {
  if (how == Stop::kCancel && state_->stop_loading) state_->stop_loading->raise();
  std::unique_lock lock(state_->mutex);
  state_->stopping = true;
  caf::anon_send(state_->actor, messages::Leave{how == Stop::kCancel});
  const auto ended = [&] { return state_->ended; };
  if (patience < std::chrono::hours(24))
    return state_->ended_changed.wait_for(lock, patience, ended);
  state_->ended_changed.wait(lock, ended);  // a moment so far away overflows a clock
  return true;
}

Result<RequestId> ServingSystem::submit(GenerateRequest request, Sink sink) {
  FS_ASSIGN(const size_t i, state_->find(request.model));
  FS_ASSIGN(GenerateRequest checked, state_->engines->engine(i).check(std::move(request)));
  Front& front = *state_->fronts[i];
  const std::lock_guard lock(state_->mutex);  // orders it before a Leave
  if (state_->stopping)
    return Error{ErrorCode::kUnavailable, "the server is stopping", front.info.name,
                 "try again later"};
  if (front.accepted.load() >= front.most)
    return Error{
        ErrorCode::kResourceExhausted,
        fmt::format("{} requests are waiting or running, and no more are taken", front.most),
        front.info.name, "try again later, or deploy with a longer queue"};
  ++front.accepted;
  const RequestId id{state_->next_id++};
  caf::anon_send(state_->actor,
                 messages::Submit{i, id, std::make_shared<GenerateRequest>(std::move(checked)),
                                  std::move(sink)});
  return id;
}

void ServingSystem::cancel(RequestId id) { caf::anon_send(state_->actor, messages::Cancel{id}); }

std::vector<ServedModel> ServingSystem::models() const {
  std::vector<ServedModel> out;
  for (const auto& front : state_->fronts) {
    out.push_back(front->info);
    out.back().weight_bytes = front->weight_bytes;
    out.back().on_device = front->on_device;
  }
  return out;
}

ServerHealth ServingSystem::health() const {
  const std::lock_guard lock(state_->mutex);
  const EngineHealth& f = state_->figures;
  ServerHealth out;
  out.ready = !state_->stopping && state_->load_over && !state_->load_failure;
  out.running = f.running;
  out.queued = f.queued;
  out.kv_blocks_free = f.kv_blocks_free;
  out.kv_blocks = f.kv_blocks;
  out.tokens_generated = f.tokens_generated;
  out.requests_finished = f.requests_finished;
  out.uptime_seconds =
      std::chrono::duration<double>(state_->clock->now() - state_->started).count();
  out.device = state_->description;
  return out;
}

Result<std::vector<int32_t>> ServingSystem::tokenise(const std::string& model,
                                                     const std::string& text,
                                                     bool add_special_tokens) const {
  FS_ASSIGN(const size_t i, state_->find(model));
  return state_->engines->engine(i).tokenizer().encode(text,
                                                       {.add_special_tokens = add_special_tokens});
}

Result<std::string> ServingSystem::detokenise(const std::string& model,
                                              std::span<const int32_t> tokens) const {
  FS_ASSIGN(const size_t i, state_->find(model));
  return state_->engines->engine(i).tokenizer().decode(tokens);
}

Result<ChatPrompt> ServingSystem::format_chat(
    const std::string& model,
    std::span<const std::pair<std::string, std::string>> role_and_content) const {
  FS_ASSIGN(const size_t i, state_->find(model));
  const ChatFormat& chat = state_->fronts[i]->chat;
  FS_ASSIGN(std::string text, chat.format(role_and_content));
  return ChatPrompt{std::move(text), chat.stop_strings()};
}

}  // namespace fastserve
