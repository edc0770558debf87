#include <algorithm>

#include "api/bench_models.h"
#include "base/rng.h"
#include "serve/engine_group.h"

namespace fastserve {
namespace {

constexpr int kPrompt = 128, kBlockTokens = 16;

/// Every byte, and words for all other ids of the vocabulary.
Result<std::shared_ptr<const Tokenizer>> word_tokenizer(int vocab) {
  BpeTrainerOptions options;
  options.vocab_size = 0;
  options.special_tokens = {};
  FS_ASSIGN(const std::string bytes, train_bpe({}, options));
  FS_ASSIGN(Json json, Json::parse(bytes, "words"));
  Json model = *json.find("model");
  Json tokens = *model.find("vocab");
  for (int id = 256; id < vocab; ++id) tokens.set("word" + std::to_string(id), int64_t{id});
  model.set("vocab", std::move(tokens));
  json.set("model", std::move(model));
  return Tokenizer::from_json(json.dump(), "words");
}

/// What one repetition saw: steps of decodes alone.
struct Decoding {
  double seconds = 0, idle = 0;
  int64_t tokens = 0;
};

/// `requests` at once, each with a prompt of its own, to their last token.
Result<Decoding> serve(Engine& engine, const DecodeShape& shape, uint64_t& last_id, Rng& rng) {
  const SystemClock clock;
  for (int i = 0; i < shape.streams; ++i) {
    GenerateRequest request;
    for (int t = 0; t < kPrompt; ++t)
      request.prompt_tokens.push_back(static_cast<int32_t>(rng.below(32000)));
    request.max_tokens = shape.tokens;
    request.sampling.temperature = 0;
    request.ignore_eos = true;
    FS_ASSIGN(request, engine.check(std::move(request)));
    FS_TRY(engine.submit(RequestId{++last_id}, std::move(request), clock.now()));
  }
  Decoding sum;
  const auto all = static_cast<size_t>(shape.streams);
  bool decoding = false;  // every request has had a token
  while (engine.has_work()) {
    const double idle = engine.decoder().idle_seconds();
    const Nanoseconds start = clock.now();
    const std::vector<GenerateEvent> events = engine.step(start);
    const bool whole = events.size() == all;
    for (const GenerateEvent& event : events)
      if (event.error) return *event.error;
    if (decoding && whole) {
      sum.seconds += std::chrono::duration<double>(clock.now() - start).count();
      sum.idle += engine.decoder().idle_seconds() - idle;
      sum.tokens += shape.streams;
    }
    decoding = whole;
  }
  return sum;
}

/// Two models of which one fits.
class Pair {
 public:
  Pair(Device& device, const ModelBundle& bundle, const ModelConfig& config,
       const DecoderOptions& options, const std::shared_ptr<const Tokenizer>& tokenizer)
      : vocab_(config.vocab_size),
        group_(engines(device, bundle, config, options, tokenizer), {},
               EngineGroup::Turns{ModelTurns({{1, 0}, {1, 0}}, 1, Nanoseconds{0}),
                                  [&device] { return device.available_memory(); },
                                  [](const EngineGroup::Turn&) {}}) {}
  /// Seconds until a prompt to one of them has its token.
  Result<double> ask(size_t model) {
    GenerateRequest request;
    for (int t = 0; t < kPrompt; ++t)
      request.prompt_tokens.push_back(
          static_cast<int32_t>(rng_.below(static_cast<uint64_t>(vocab_))));
    request.max_tokens = 1;
    FS_ASSIGN(request, group_.engine(model).check(std::move(request)));
    std::optional<GenerateEvent> last;
    const Nanoseconds start = clock_.now();
    group_.submit(
        model, RequestId{++last_id_}, std::move(request),
        [&last](std::vector<GenerateEvent> events) { last = std::move(events.back()); }, start);
    while (!last) group_.step(clock_.now());
    if (last->error) return *last->error;
    return std::chrono::duration<double>(clock_.now() - start).count();
  }
  size_t weight_bytes(size_t model) const { return group_.engine(model).decoder().weight_bytes(); }

 private:
  static std::vector<std::unique_ptr<Engine>> engines(
      Device& device, const ModelBundle& bundle, const ModelConfig& config,
      const DecoderOptions& options, const std::shared_ptr<const Tokenizer>& tokenizer) {
    const auto make = [&device, bundle, options] {
      return Decoder::begin(device, bundle, options);
    };
    std::vector<std::unique_ptr<Engine>> out;
    for (int i = 0; i < 2; ++i)
      out.push_back(std::make_unique<Engine>(config, options, make, tokenizer, SchedulerLimits()));
    return out;
  }
  const int vocab_;
  const SystemClock clock_;
  Rng rng_{11};
  uint64_t last_id_ = 0;
  EngineGroup group_;
};

}  // namespace

Result<BenchResult> bench_turns(const BenchContext& context, BenchModel model,
                                WeightFormat format) {
  const ModelConfig config = config_of(model);
  FS_ASSIGN(const ModelBundle bundle, random_bundle(config, format));
  FS_ASSIGN(auto tokenizer, word_tokenizer(config.vocab_size));
  FS_ASSIGN(const auto device, context.device.make(context.lanes));
  DecoderOptions options;
  options.block_tokens = kBlockTokens;
  options.kv_blocks = 2 * kPrompt / kBlockTokens;
  options.max_logits = 1;
  Pair pair(*device, bundle, config, options, tokenizer);
  const SystemClock clock;
  FS_ASSIGN(const double first, pair.ask(0));
  FS_ASSIGN(double there, pair.ask(0));
  std::vector<double> turns;
  const Nanoseconds start = clock.now();
  do {
    const size_t next = 1 - turns.size() % 2;
    FS_ASSIGN(const double seconds, pair.ask(next));
    turns.push_back(seconds);
    FS_ASSIGN(const double again, pair.ask(next));
    there = std::min(there, again);
  } while (!context.cancel.raised() &&
           (turns.size() < 3 ||
            std::chrono::duration<double>(clock.now() - start).count() < context.seconds));
  if (context.cancel.raised()) return Error{ErrorCode::kCancelled, "stopped", "bench", ""};
  BenchResult result;
  result.unit = "s to the first token";
  summarise(turns, result);
  result.detail = Json::object({{"format", weight_format_name(format)},
                                {"prompt", kPrompt},
                                {"repetitions", turns.size()},
                                {"first_load_seconds", first},
                                {"there_seconds", there},
                                {"weight_bytes", pair.weight_bytes(turns.size() % 2)}});
  return result;
}

Result<BenchResult> bench_serving(const BenchContext& context, const DecodeShape& shape) {
  const ModelConfig config = config_of(shape.model);
  FS_ASSIGN(const ModelBundle bundle, random_bundle(config, shape.format));
  FS_ASSIGN(auto tokenizer, word_tokenizer(config.vocab_size));
  FS_ASSIGN(const auto device, context.device.make(context.lanes));
  DecoderOptions options;
  options.block_tokens = kBlockTokens;
  options.kv_blocks = shape.streams * ((kPrompt + shape.tokens) / kBlockTokens + 1);
  options.max_rows = std::max(options.max_rows, 2 * shape.streams);
  options.max_logits = shape.streams;
  FS_ASSIGN(auto decoder, Decoder::load(*device, bundle, options));
  Engine engine(
      std::move(decoder), std::move(tokenizer),
      {.step_rows = options.max_rows, .max_running = shape.streams, .max_waiting = shape.streams});
  const SystemClock clock;
  Rng rng(11);
  uint64_t last_id = 0;
  std::vector<double> rates;
  Decoding all;
  FS_TRY(serve(engine, shape, last_id, rng));  // warm-up
  const Nanoseconds start = clock.now();
  do {
    FS_ASSIGN(const Decoding one, serve(engine, shape, last_id, rng));
    rates.push_back(static_cast<double>(one.tokens) / one.seconds);
    all.seconds += one.seconds;
    all.idle += one.idle;
  } while (!context.cancel.raised() &&
           (rates.size() < 3 ||
            std::chrono::duration<double>(clock.now() - start).count() < context.seconds));
  if (context.cancel.raised()) return Error{ErrorCode::kCancelled, "stopped", "bench", ""};
  BenchResult result;
  result.unit = "tokens/s";
  summarise(rates, result);
  result.detail = Json::object({{"format", weight_format_name(shape.format)},
                                {"streams", shape.streams},
                                {"repetitions", rates.size()},
                                {"weight_bytes", engine.decoder().weight_bytes()},
                                {"graph_steps", engine.decoder().graph_steps()}});
  if (engine.decoder().draws()) result.detail.set("host_share", all.idle / all.seconds);
  return result;
}

}  // namespace fastserve
