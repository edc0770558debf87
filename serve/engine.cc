#include <fmt/format.h>

#include <algorithm>

#include "serve/engine_live.h"

namespace fastserve {
namespace {

constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
/// A timeout beyond this is none; it keeps sums of times far from overflow.
constexpr Nanoseconds kForever = std::chrono::hours(24 * 365 * 10);

Error refuse(std::string what, const char* field, const char* hint) {
  return {ErrorCode::kInvalidArgument, std::move(what), field, hint};
}

SchedulerLimits cut_to(const DecoderOptions& options, SchedulerLimits limits) {
  const int logits = options.max_logits > 0 ? options.max_logits : options.max_rows;
  limits.step_rows = std::min(limits.step_rows, options.max_rows);
  limits.max_running = std::min(limits.max_running, logits);
  return limits;
}

int context_of(const ModelConfig& config, const DecoderOptions& options) {
  const int64_t held = int64_t{options.kv_blocks} * options.block_tokens;
  return static_cast<int>(std::min<int64_t>(held, config.max_positions));
}

Status check_stops(const std::vector<std::string>& stops) {
  if (stops.size() > kMaxStops)
    return refuse(fmt::format("{} are too many", stops.size()), "stop", "16 are the most");
  for (const std::string& stop : stops) {
    if (stop.empty()) return refuse("one of them is empty", "stop", "leave it out");
    if (stop.size() > kMaxStopBytes)
      return refuse(fmt::format("one of them has {} bytes", stop.size()), "stop",
                    "1024 are the most");
  }
  return {};
}

}  // namespace

Engine::Engine(std::unique_ptr<Decoder> decoder, std::shared_ptr<const Tokenizer> tokenizer,
               SchedulerLimits limits)
    : Engine(std::move(decoder), decoder->config(), decoder->options(), {}, std::move(tokenizer),
             limits) {}

Engine::Engine(ModelConfig config, DecoderOptions options, DecoderMaker make,
               std::shared_ptr<const Tokenizer> tokenizer, SchedulerLimits limits)
    : Engine(nullptr, std::move(config), options, std::move(make), std::move(tokenizer), limits) {}

Engine::Engine(std::unique_ptr<Decoder>&& decoder, ModelConfig config, DecoderOptions options,
               DecoderMaker make, std::shared_ptr<const Tokenizer> tokenizer,
               SchedulerLimits limits)
    : config_(std::move(config)),
      options_(options),
      make_(std::move(make)),
      tokenizer_(std::move(tokenizer)),
      decoder_(std::move(decoder)),
      context_length_(context_of(config_, options_)),
      pages_(options_.kv_blocks, options_.block_tokens),
      scheduler_(cut_to(options_, limits), pages_, decoder_ ? decoder_->host_places() : 0),
      sampler_(config_.vocab_size) {
  tokens_.reserve(static_cast<size_t>(options_.max_rows));
}

Engine::~Engine() {
  while (!at_work_.empty()) {
    (void)decoder_->drawn();
    at_work_.pop_front();
  }
}

Status Engine::come() {
  FS_CHECK(make_ && !here());
  FS_ASSIGN(decoder_, make_());
  FS_CHECK(decoder_->options().kv_blocks == options_.kv_blocks &&
           decoder_->options().block_tokens == options_.block_tokens);
  scheduler_.restart(decoder_->host_places());
  return {};
}

void Engine::leave() {
  FS_CHECK(make_ && here() && !answering());
  while (!at_work_.empty()) collect();  // for requests that ended since
  (void)decoder_->settle();             // what went wrong with it is not the next one's
  decoder_.reset();
  load_failure_.reset();
}

Result<GenerateRequest> Engine::check(GenerateRequest request) const {
  FS_TRY(request.sampling.validate());
  FS_TRY(check_stops(request.stop));
  if (request.max_tokens < 1)
    return refuse(fmt::format("{} is not a number of tokens", request.max_tokens), "max_tokens",
                  "ask for at least one");
  if (!request.prompt.empty()) {
    if (!request.prompt_tokens.empty())
      return refuse("given as text and as tokens", "prompt", "give one of them");
    // A text that spells its own beginning-of-text token, as chat templates do, gets no second one.
    const auto& bos = config_.bos_token;
    const std::string bos_text = bos ? tokenizer_->token_text(*bos) : "";
    const bool has_bos = !bos_text.empty() && request.prompt.starts_with(bos_text);
    auto tokens = tokenizer_->encode(request.prompt, {.add_special_tokens = !has_bos});
    if (!tokens.ok()) {
      Error error = std::move(tokens).error();
      error.where = "prompt";
      return error;
    }
    request.prompt_tokens = *std::move(tokens);
    request.prompt.clear();
  }
  if (request.prompt_tokens.empty())
    return refuse("empty", "prompt", "give at least one character or token");
  if (request.prompt_tokens.size() > static_cast<size_t>(context_length_))
    return refuse(fmt::format("{} tokens, and the context holds {}", request.prompt_tokens.size(),
                              context_length_),
                  "prompt",
                  context_length_ < config_.max_positions
                      ? "shorten it, or deploy with more context tokens"
                      : "shorten it, or use a model that reads more at once");
  const int vocab = config_.vocab_size;
  for (int32_t token : request.prompt_tokens)
    if (token < 0 || token >= vocab)
      return refuse(fmt::format("token {} is not in the model's vocabulary of {}", token, vocab),
                    "prompt", "use the ids of this model's tokenizer");
  return request;
}

Status Engine::submit(RequestId id, GenerateRequest checked, Nanoseconds now) {
  if (load_failure_) return *load_failure_;
  const std::optional<Nanoseconds> timeout = checked.timeout;
  auto live = std::make_unique<Live>(id, std::move(checked), tokenizer_);
  if (timeout && *timeout < kForever) live->deadline = now + std::max(*timeout, Nanoseconds{0});
  if (!scheduler_.add(*live))
    return Error{ErrorCode::kResourceExhausted, "the queue of requests is full", "",
                 "try again later, or deploy with a longer queue"};
  FS_CHECK(live_.emplace(id, std::move(live)).second);
  return {};
}

void Engine::cancel(RequestId id) {
  const auto it = live_.find(id);
  if (it != live_.end()) end(*it->second, FinishReason::kCancelled);
}

void Engine::cancel_all() {
  while (!live_.empty()) end(*live_.begin()->second, FinishReason::kCancelled);
}

std::vector<GenerateEvent> Engine::step(Nanoseconds now) {
  collect();
  expire(now);
  if (loading() && (live_.empty() || !decoder_->steps_while_loading()))
    take_weights(decoder_->load_more());
  else if (here() && at_work_.empty())
    if (const auto turns = scheduler_.plan(); !turns.empty()) run(turns);
  if (at_work_.size() == 1) run_ahead();
  write_all();
  ++events_given_;
  return std::exchange(events_, {});
}

void Engine::settle() {
  while (!at_work_.empty()) {
    collect();
    write_all();
  }
  if (loading()) take_weights(decoder_->settle());
}

/// A decoder that could not be loaded answers nobody.
void Engine::take_weights(const Status& taken) {
  if (taken.ok()) return;
  load_failure_ = taken.error();
  abandon_all(taken.error());
}

void Engine::expire(Nanoseconds now) {
  std::vector<Live*> late;
  for (const auto& [id, live] : live_)
    if (live->deadline && *live->deadline <= now) late.push_back(live.get());
  std::sort(late.begin(), late.end(),
            [](const Live* a, const Live* b) { return a->arrival < b->arrival; });
  for (Live* live : late) end(*live, FinishReason::kDeadline);
}

GenerateEvent& Engine::event_of(Live& live) {
  if (live.events_of != events_given_) {
    live.events_of = events_given_;
    live.event = events_.size();
    events_.emplace_back().request = live.id;
  }
  return events_[live.event];
}

EngineHealth Engine::health() const {
  return {.running = scheduler_.running(),
          .queued = scheduler_.waiting(),
          .kv_blocks_free = here() ? pages_.free() : 0,
          .kv_blocks = here() ? pages_.blocks() : 0,
          .tokens_generated = tokens_generated_,
          .requests_finished = requests_finished_,
          .preemptions = scheduler_.preemptions(),
          .prompt_tokens_shared = scheduler_.shared_tokens(),
          .tokens_parked = scheduler_.parked_tokens()};
}

}  // namespace fastserve
