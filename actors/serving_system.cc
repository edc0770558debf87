#include "actors/serving_system.h"

#include <fmt/format.h>

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "actors/server.h"
#include "cpu/cpu_device.h"
#include "model/huggingface.h"
#include "model/parameters.h"
#include "serve/chat.h"
#include "serve/memory.h"

namespace fastserve {
namespace {

using LoadedModel = ServingSystem::LoadedModel;

/// What is known of a model without its weights.
struct Draft {
  ModelConfig config;
  std::map<std::string, WeightFormat> formats;
  DecoderOptions options;
  std::shared_ptr<const Tokenizer> tokenizer;
};

Result<Draft> draft(const ServingSystem::Model& model, const SchedulerLimits& limits) {
  Draft out;
  const std::string where = model.name + "@" + model.version;
  FS_ASSIGN(out.config, bundle_config(model.bundle));
  FS_ASSIGN(out.formats, bundle_weight_formats(model.bundle));
  const auto json = model.bundle.documents.find("tokenizer.json");
  if (json == model.bundle.documents.end())
    return Error{ErrorCode::kNotFound, "has no tokenizer.json", where,
                 "import the model with its tokenizer"};
  FS_ASSIGN(out.tokenizer, Tokenizer::from_json(json->second, where + "/tokenizer.json"));
  out.options = model.options;
  if (out.options.max_logits == 0)
    out.options.max_logits = std::min(out.options.max_rows, limits.max_running);
  if (out.options.kv_blocks <= 0)
    out.options.kv_blocks =
        (out.config.max_positions + out.options.block_tokens - 1) / out.options.block_tokens;
  return out;
}

/// What would fit where all of it does not: the models with a shorter context, or the first of
/// them.
std::string what_fits(const std::vector<DecoderMemory>& needs, uint64_t have) {
  uint64_t fixed = 0, token = 0, loading = 0;
  size_t first = 0;  // so many of the models fit as they are
  uint64_t taken = 0;
  for (const DecoderMemory& m : needs) {
    loading = std::max(loading, m.loading);
    fixed += m.weights + m.activations;
    token += m.kv_token;
    taken += m.weights + m.kv + m.activations;
    if (taken + loading <= have) ++first;
  }
  fixed += loading;
  constexpr uint64_t kWorthIt = 64;  // tokens of context; an answer needs some
  if (have > fixed && (have - fixed) / token >= kWorthIt)
    return fmt::format("a context of {} tokens fits{}", (have - fixed) / token / 16 * 16,
                       needs.size() > 1 ? ", of each model" : "");
  if (first > 0) return fmt::format("the first {} of the {} models fit", first, needs.size());
  return "the weights alone are too large";
}

Status check_memory(const std::vector<Draft>& drafts, const Device& device, uint64_t limit) {
  DecoderMemory need;
  std::vector<DecoderMemory> needs;
  for (const Draft& d : drafts) {
    DecoderMemory m = estimate_decoder_memory(d.config, d.formats, d.options);
    if (!device.host_memory()) m = on_device(m, d.config, d.options);
    need.weights += m.weights;
    need.kv += m.kv;
    need.activations += m.activations;
    need.loading = std::max(need.loading, m.loading);
    needs.push_back(m);
  }
  const uint64_t have = limit > 0 ? limit : device.available_memory();
  if (need.total() <= have) return {};
  return Error{
      ErrorCode::kResourceExhausted,
      fmt::format("serving needs {} of memory (weights {}, KV cache {}, activations {}, "
                  "loading {}) and {} can be had: {}",
                  human_bytes(need.total()), human_bytes(need.weights), human_bytes(need.kv),
                  human_bytes(need.activations), human_bytes(need.loading), human_bytes(have),
                  what_fits(needs, have)),
      device.host_memory() ? "" : device.description(),
      "deploy fewer models, a compressed one, one with a shorter context, or keys and values as "
      "int8 (--kv int8)"};
}

ServedModel describe(const ServingSystem::Model& model, const Draft& draft, const Engine& engine) {
  ServedModel info;
  info.name = model.name;
  info.version = model.version;
  info.architecture = architecture_name(draft.config.architecture);
  const WeightFormat format =
      draft.formats.empty() ? draft.options.weights : draft.formats.rbegin()->second;
  info.weight_format = weight_format_name(format);
  info.parameters = static_cast<int64_t>(ParameterLayout(draft.config).trainable());
  info.weight_bytes = static_cast<int64_t>(engine.decoder().weight_bytes());
  info.context_length = engine.context_length();
  info.vocab_size = draft.config.vocab_size;
  return info;
}

SchedulerLimits limits_of(const ServingSystem::Config& config) {
  SchedulerLimits limits = config.limits;
  limits.max_waiting = config.max_queue + limits.max_running;
  return limits;
}

Result<std::vector<LoadedModel>> load(const ServingSystem::Config& config, Device& device) {
  const SchedulerLimits limits = limits_of(config);
  std::vector<Draft> drafts;
  for (const ServingSystem::Model& model : config.models) {
    FS_ASSIGN(Draft d, draft(model, limits));
    drafts.push_back(std::move(d));
  }
  FS_TRY(check_memory(drafts, device, config.memory_limit));
  std::vector<LoadedModel> loaded;
  for (size_t i = 0; i < drafts.size(); ++i) {
    const auto progress = [&](double part) {
      if (config.progress)
        config.progress((static_cast<double>(i) + part) / static_cast<double>(drafts.size()));
    };
    FS_ASSIGN(auto decoder,
              Decoder::load(device, config.models[i].bundle, drafts[i].options, progress));
    LoadedModel model;
    model.engine = std::make_unique<Engine>(std::move(decoder), drafts[i].tokenizer, limits);
    model.info = describe(config.models[i], drafts[i], *model.engine);
    model.documents = config.models[i].bundle.documents;
    const DecoderOptions& options = model.engine->decoder().options();
    config.log.info(fmt::format(
        "loaded {}@{}: {} parameters as {}, {} tokens of context; KV cache of {} tokens as {}, {}",
        model.info.name, model.info.version, model.info.parameters, model.info.weight_format,
        model.info.context_length, int64_t{options.kv_blocks} * options.block_tokens,
        kv_type_name(options.kv), human_bytes(model.engine->decoder().kv_bytes())));
    loaded.push_back(std::move(model));
  }
  if (config.progress) config.progress(1.0);
  return loaded;
}

/// One deployed model as callers from any thread see it.
struct Front {
  ServedModel info;
  ChatFormat chat;
  int most;                      ///< requests it holds at once
  std::atomic<int> accepted{0};  ///< of them without a last event yet
};

}  // namespace

struct ServingSystem::State {
  ~State();
  Status start_actor();
  Result<size_t> find(const std::string& model) const;

  const Clock* clock = nullptr;
  SystemClock system_clock;
  Log log;
  std::string description;
  Nanoseconds started{0};
  std::unique_ptr<Device> device;  // outlives the engines
  std::vector<std::unique_ptr<Front>> fronts;
  std::shared_ptr<EngineGroup> engines;

  mutable std::mutex mutex;
  std::condition_variable ended_changed;
  bool stopping = false, ended = false;
  EngineHealth figures;
  uint64_t next_id = 1;

  caf::actor_system_config actor_config;
  std::optional<caf::actor_system> actors;
  ServerActor actor;
};

ServingSystem::State::~State() {
  actor = nullptr;
  actors.reset();  // waits for the actor, which was told to leave
}

Status ServingSystem::State::start_actor() {
  ServerParts parts;
  parts.engines = engines;
  parts.clock = clock;
  parts.report = [this](const EngineHealth& now) {
    const std::lock_guard lock(mutex);
    figures = now;
  };
  parts.ended = [this](const std::string& failure) {
    if (!failure.empty()) log.error("the server's thread failed: " + failure);
    const std::lock_guard lock(mutex);
    stopping = ended = true;
    ended_changed.notify_all();
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
  FS_ASSIGN(auto models, load(config, *device));
  config.models.clear();
  std::string description = device->description();
  return serve(std::move(config), std::move(models), std::move(device), std::move(description));
}

Result<std::shared_ptr<ServingSystem>> ServingSystem::serve(Config config,
                                                            std::vector<LoadedModel> models,
                                                            std::unique_ptr<Device> device,
                                                            std::string description) {
  auto state = std::make_unique<State>();
  state->clock = config.clock != nullptr ? config.clock : &state->system_clock;
  state->log = config.log;
  state->description = std::move(description);
  state->started = state->clock->now();
  state->device = std::move(device);
  std::vector<std::unique_ptr<Engine>> engines;
  for (LoadedModel& model : models) {
    state->fronts.push_back(std::unique_ptr<Front>(
        new Front{std::move(model.info), ChatFormat::from_documents(model.documents),
                  limits_of(config).max_waiting}));
    engines.push_back(std::move(model.engine));
  }
  state->engines = std::make_shared<EngineGroup>(
      std::move(engines), [s = state.get()](size_t i) { --s->fronts[i]->accepted; });
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
  for (const auto& front : state_->fronts) out.push_back(front->info);
  return out;
}

ServerHealth ServingSystem::health() const {
  const std::lock_guard lock(state_->mutex);
  const EngineHealth& f = state_->figures;
  ServerHealth out;
  out.ready = !state_->stopping;
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
