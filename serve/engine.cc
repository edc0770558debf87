#include "serve/engine.h"

#include <fmt/format.h>

#include <algorithm>

#include "serve/stop_matcher.h"

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

/// One request from submission to its last event.
struct Engine::Live : Sequence {
  Live(RequestId request_id, GenerateRequest asked, std::shared_ptr<const Tokenizer> tokenizer)
      : id(request_id),
        request(std::move(asked)),
        decoder(std::move(tokenizer), /*skip_special_tokens=*/true),
        stops(request.stop) {
    tokens = std::move(request.prompt_tokens);
    prompt_tokens = static_cast<int>(tokens.size());
  }
  int generated() const { return static_cast<int>(tokens.size()) - prompt_tokens; }

  RequestId id;
  GenerateRequest request;
  StreamDecoder decoder;
  StopMatcher stops;
  int prompt_tokens = 0;
  std::optional<Nanoseconds> deadline;
  std::optional<GeneratedToken> unwritten;  ///< the last token, while it is no text yet
  int64_t batch = -1;                       ///< of events that has one of this request
  size_t event = 0;                         ///< its index there
};

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
  if (drawing_) (void)decoder_->drawn();
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
  (void)decoder_->settle();  // what went wrong with it is not the next one's
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
  if (drawing_) {
    cancelled_.push_back(id);
    return;
  }
  const auto it = live_.find(id);
  if (it != live_.end()) end(*it->second, FinishReason::kCancelled);
}

void Engine::cancel_all() {
  if (drawing_)
    for (const auto& [id, live] : live_) cancelled_.push_back(id);
  else
    while (!live_.empty()) end(*live_.begin()->second, FinishReason::kCancelled);
}

std::vector<GenerateEvent> Engine::step(Nanoseconds now) {
  collect();
  expire(now);
  if (loading() && (live_.empty() || !decoder_->steps_while_loading()))
    take_weights(decoder_->load_more());
  else if (here())
    if (const auto turns = scheduler_.plan(); !turns.empty()) run(turns);
  write_all();
  ++batch_;
  return std::exchange(events_, {});
}

void Engine::settle() {
  collect();
  write_all();
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

void Engine::run(std::span<const Scheduler::Turn> turns) {
  turns_ = turns;
  tokens_.clear();
  segments_.clear();
  wanted_.clear();
  answering_.clear();
  for (const Scheduler::Turn& turn : turns) {
    Live& live = static_cast<Live&>(*turn.sequence);
    const int first = static_cast<int>(tokens_.size());
    const auto begin = live.tokens.begin() + live.computed;
    tokens_.insert(tokens_.end(), begin, begin + turn.rows);
    segments_.push_back({first, turn.rows, live.computed, live.blocks});
    if (turn.rows < live.pending()) continue;
    wanted_.push_back(first + turn.rows - 1);
    answering_.push_back(&live);
  }
  const std::vector<BlockMove> moves = scheduler_.take_moves();
  if (!moves.empty()) {
    // Whose blocks came through is not known then: nobody's are trusted.
    if (const Status moved = decoder_->move_blocks(moves); !moved.ok())
      return abandon_all(moved.error());
  }
  took_weights_ = loading();
  if (!decoder_->draws()) return finish(sample_answers());
  if (const Status begun = begin_drawing(); !begun.ok()) return finish(begun);
  drawing_ = true;
  if (took_weights_) collect();  // who waits for weights that are wrong is to be told at once
}

/// What the device was left at work on.
void Engine::collect() {
  if (!drawing_) return;
  drawing_ = false;
  finish(take_drawn());
  for (const RequestId id : std::exchange(cancelled_, {})) cancel(id);
}

void Engine::finish(const Status& stepped) {
  if (!stepped.ok()) return took_weights_ ? take_weights(stepped) : abandon(stepped.error());
  scheduler_.advance();
  for (size_t i = 0; i < answering_.size(); ++i) take_token(*answering_[i], std::move(sampled_[i]));
}

Status Engine::sample_answers() {
  FS_ASSIGN(const std::span<const float> logits, decoder_->step(tokens_, segments_, wanted_));
  const size_t vocab = static_cast<size_t>(config_.vocab_size);
  sampled_.clear();
  for (size_t i = 0; i < answering_.size(); ++i)
    sampled_.push_back(sample(*answering_[i], logits.subspan(i * vocab, vocab)));
  return {};
}

/// Only tokens will come from the device, and the logits of those that want more of them than that.
Status Engine::begin_drawing() {
  draws_.clear();
  sampled_here_.clear();
  for (size_t i = 0; i < answering_.size(); ++i) {
    const auto draw = draw_on_device(answering_[i]->request.sampling, answering_[i]->generated());
    if (!draw) sampled_here_.push_back(i);
    draws_.push_back(draw.value_or(TokenDraw{}));
  }
  return decoder_->begin_drawing(tokens_, segments_, wanted_, draws_);
}

Status Engine::take_drawn() {
  FS_ASSIGN(const std::span<const int32_t> tokens, decoder_->drawn());
  sampled_.clear();
  for (const int32_t token : tokens) {
    if (token < 0)
      sampled_.push_back(logits_not_finite());
    else
      sampled_.push_back(GeneratedToken{token, 0, {}});
  }
  for (const size_t i : sampled_here_) {
    FS_ASSIGN(const std::span<const float> logits, decoder_->logits_of(i));
    sampled_[i] = sample(*answering_[i], logits);
  }
  return {};
}

Result<GeneratedToken> Engine::sample(const Live& live, std::span<const float> logits) {
  return sampler_.sample(logits, live.request.sampling, live.tokens, live.generated());
}

/// A device that has failed answers none of the requests it was at work on.
void Engine::abandon(const Error& error) {
  const std::vector<Scheduler::Turn> all(turns_.begin(), turns_.end());  // end() forgets the plan
  for (const Scheduler::Turn& turn : all)
    end(static_cast<Live&>(*turn.sequence), FinishReason::kError, error);
}

void Engine::abandon_all(const Error& error) {
  const FinishReason reason =
      error.code == ErrorCode::kCancelled ? FinishReason::kCancelled : FinishReason::kError;
  while (!live_.empty()) end(*live_.begin()->second, reason, error);
}

void Engine::take_token(Live& live, Result<GeneratedToken> sampled) {
  if (!sampled.ok()) return end(live, FinishReason::kError, std::move(sampled).error());
  const int32_t token = sampled->token;
  live.tokens.push_back(token);
  ++tokens_generated_;
  live.unwritten = *std::move(sampled);
  if (!live.request.stop.empty()) write(live);  // whether it goes on depends on what it says
  const FinishReason reason = finish_of(live, token);
  if (reason != FinishReason::kNone) return end(live, reason);
  if (live.unwritten) unwritten_.push_back(&live);
}

/// Makes its last token text.
void Engine::write(Live& live) {
  if (!live.unwritten) return;
  GenerateEvent& event = event_of(live);
  event.text += live.stops.push(live.decoder.push(live.unwritten->token));
  event.tokens.push_back(*std::exchange(live.unwritten, std::nullopt));
}

void Engine::write_all() {
  for (Live* live : unwritten_) write(*live);
  unwritten_.clear();
}

FinishReason Engine::finish_of(const Live& live, int32_t token) const {
  const auto& eos = config_.eos_tokens;
  if (live.stops.matched()) return FinishReason::kStop;
  if (!live.request.ignore_eos && std::find(eos.begin(), eos.end(), token) != eos.end())
    return FinishReason::kEos;
  if (live.generated() >= live.request.max_tokens) return FinishReason::kLength;
  if (static_cast<int>(live.tokens.size()) > context_length_) return FinishReason::kContext;
  return FinishReason::kNone;
}

void Engine::end(Live& live, FinishReason reason, std::optional<Error> error) {
  FS_CHECK(!drawing_);
  write(live);
  std::erase(unwritten_, &live);
  GenerateEvent& event = event_of(live);
  event.text += live.stops.push(live.decoder.finish());
  event.text += live.stops.finish();
  // The held-back text of a natural end may complete a stop string.
  const bool natural = reason == FinishReason::kEos || reason == FinishReason::kLength ||
                       reason == FinishReason::kContext;
  event.finish = natural && live.stops.matched() ? FinishReason::kStop : reason;
  event.error = std::move(error);
  event.prompt_tokens = live.prompt_tokens;
  event.generated_tokens = live.generated();
  ++requests_finished_;
  scheduler_.remove(live);
  const RequestId id = live.id;
  live_.erase(id);
}

GenerateEvent& Engine::event_of(Live& live) {
  if (live.batch != batch_) {
    live.batch = batch_;
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
