#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "api/bench_models.h"
#include "base/rng.h"
#include "model/decoder.h"
#include "model/preloaded.h"
#include "serve/sampler.h"

namespace fastserve {
namespace {

constexpr int kPrompt = 128, kBlockTokens = 16;

/// Bytes that loading has to read.
double stored_bytes(const TensorSource& tensors) {
  double bytes = 0;
  for (const std::string& name : tensors.names())
    bytes += static_cast<double>(tensors.tensor(name)->bytes.size());
  return bytes;
}

/// Bytes a second from pinned memory to the device's own, at best; 0 where that is the host's.
Result<double> host_copy_rate(Device& device) {
  if (device.host_memory()) return 0.0;
  constexpr size_t kBytes = size_t{64} << 20, kCopies = 8;
  FS_ASSIGN(const auto pinned, device.allocate_host(kBytes));
  FS_ASSIGN(const auto memory, device.allocate(kBytes));
  const SystemClock clock;
  double best = 0;
  for (int repetition = 0; repetition < 4; ++repetition) {
    FS_TRY(device.sync());
    const Nanoseconds start = clock.now();
    for (size_t copy = 0; copy < kCopies; ++copy)
      device.copy_in_async(memory->data(), pinned->data(), kBytes);
    FS_TRY(device.sync());
    const double seconds = std::chrono::duration<double>(clock.now() - start).count();
    best = std::max(best, kBytes * kCopies / seconds);
  }
  return best;
}

/// How a decoder's steps are to be started.
struct StepStart {
  int graphs = 32;
  StepKernels kernels = DecoderOptions().kernels;
};
constexpr StepStart kWithoutGraphs{.graphs = 0};

/// A loaded decoder and the sequences it runs, each with its blocks of the pool. A step is what the
/// server's engine does on the device and after it: one ragged batch, logits of every stream, and
/// each stream's token chosen by the server's sampler, or drawn on a device that does so.
class Streams {
 public:
  static Result<std::unique_ptr<Streams>> load(const BenchContext& context,
                                               const ModelBundle& bundle, int streams,
                                               int tokens_each, StepStart start = {}) {
    FS_ASSIGN(auto self, begin(context, bundle, streams, tokens_each, start));
    FS_TRY(self->finish_loading());
    return self;
  }
  /// With its weights still to come. `device`: made before; null: to be made.
  static Result<std::unique_ptr<Streams>> begin(const BenchContext& context,
                                                const ModelBundle& bundle, int streams,
                                                int tokens_each, StepStart start,
                                                std::unique_ptr<Device> device = nullptr) {
    auto self = std::unique_ptr<Streams>(new Streams);
    self->device_ = std::move(device);
    if (!self->device_) {
      FS_ASSIGN(self->device_, context.device.make(context.lanes));
    }
    const int blocks_each = (tokens_each + kBlockTokens - 1) / kBlockTokens;
    DecoderOptions options;
    options.kv_blocks = streams * blocks_each;
    options.block_tokens = kBlockTokens;
    options.max_logits = streams;
    options.graphs = start.graphs;
    options.kernels = start.kernels;
    self->begun_ = self->clock_.now();
    FS_ASSIGN(self->decoder_, Decoder::begin(*self->device_, bundle, options));
    self->load_ends_.push_back(self->seconds());
    self->load_bytes_ = stored_bytes(*bundle.tensors);
    self->sampler_ = std::make_unique<TokenSampler>(self->decoder_->config().vocab_size);
    for (int s = 0; s < streams; s++) {
      self->blocks_.emplace_back();
      for (int b = 0; b < blocks_each; b++) self->blocks_.back().push_back(s * blocks_each + b);
    }
    return self;
  }

  Status finish_loading() {
    while (!decoder_->loaded()) {
      FS_TRY(decoder_->load_more());
      load_ends_.push_back(seconds());
    }
    return {};
  }
  /// Since it was begun.
  double seconds() const { return std::chrono::duration<double>(clock_.now() - begun_).count(); }

  /// Runs `count` random tokens of one stream from `position`.
  Status prefill(int stream, int position, int count) {
    std::vector<int32_t> tokens(static_cast<size_t>(count));
    for (int32_t& token : tokens) token = static_cast<int32_t>(rng_.below(32000));
    for (int from = 0; from < count; from += decoder_->options().max_rows) {
      const int rows = std::min(decoder_->options().max_rows, count - from);
      const Segment segment{0, rows, position + from, blocks_[static_cast<size_t>(stream)]};
      const int32_t last = rows - 1;
      FS_TRY(decoder_->step(
          std::span(tokens).subspan(static_cast<size_t>(from), static_cast<size_t>(rows)),
          {&segment, 1}, {&last, 1}));
    }
    return {};
  }
  /// One token of every stream at `position`, greedily from the step before.
  Status decode(int position) {
    const size_t n = blocks_.size();
    last_.resize(n, 1);
    std::vector<Segment> segments;
    std::vector<int32_t> wanted;
    for (size_t s = 0; s < n; s++) {
      segments.push_back({static_cast<int>(s), 1, position, blocks_[s]});
      wanted.push_back(static_cast<int32_t>(s));
    }
    if (decoder_->draws()) {
      const std::vector<TokenDraw> draws(n);
      FS_ASSIGN(const auto tokens, decoder_->step_and_draw(last_, segments, wanted, draws));
      last_.assign(tokens.begin(), tokens.end());
      return {};
    }
    FS_ASSIGN(const auto logits, decoder_->step(last_, segments, wanted));
    const size_t vocab = logits.size() / n;
    for (size_t s = 0; s < n; s++) {
      const auto row = logits.subspan(s * vocab, vocab);
      FS_ASSIGN(const GeneratedToken token,
                sampler_->sample(row, {.temperature = 0}, {&last_[s], 1}, position));
      last_[s] = token.token;
    }
    return {};
  }
  const Decoder& decoder() const { return *decoder_; }
  Device& device() const { return *device_; }
  double load_seconds() const { return load_ends_.back(); }
  /// Where its seconds went. What goes on beside the host's work counts where it was waited for.
  Json load_stages() const {
    const size_t n = load_ends_.size();
    return Json::object({{"memory", load_ends_[0]},
                         {"tables", load_ends_[1] - load_ends_[0]},
                         {"layers", load_ends_[n - 3] - load_ends_[1]},
                         {"head", load_ends_[n - 2] - load_ends_[n - 3]},
                         {"last_checks", load_ends_[n - 1] - load_ends_[n - 2]}});
  }
  double load_bytes() const { return load_bytes_; }
  size_t count() const { return blocks_.size(); }

 private:
  Streams() = default;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<TokenSampler> sampler_;
  std::vector<std::vector<int32_t>> blocks_;
  std::vector<int32_t> last_;
  SystemClock clock_;
  Nanoseconds begun_{0};
  std::vector<double> load_ends_;  ///< seconds at which memory and each part of the weights was had
  double load_bytes_ = 0;
  Rng rng_{11};
};

/// Repeats `body` (which does `work` tokens) until the time is up, at least three times.
template <class Body>
Result<std::vector<double>> measure(const BenchContext& context, double work, const Body& body) {
  const SystemClock clock;
  std::vector<double> rates;
  FS_TRY(body());  // warm-up
  const Nanoseconds start = clock.now();
  while (!context.cancel.raised() &&
         (rates.size() < 3 ||
          std::chrono::duration<double>(clock.now() - start).count() < context.seconds)) {
    const Nanoseconds begin = clock.now();
    FS_TRY(body());
    rates.push_back(work / std::chrono::duration<double>(clock.now() - begin).count());
  }
  return rates;
}

Result<BenchResult> result_of(const BenchContext& context, const std::vector<double>& rates,
                              const Streams& streams, WeightFormat format) {
  if (context.cancel.raised()) return Error{ErrorCode::kCancelled, "stopped", "bench", ""};
  BenchResult result;
  result.unit = "tokens/s";
  summarise(rates, result);
  const double bytes = static_cast<double>(streams.decoder().weight_bytes());
  result.detail = Json::object({{"format", weight_format_name(format)},
                                {"streams", streams.count()},
                                {"weight_bytes", bytes},
                                {"repetitions", rates.size()},
                                {"load_seconds", streams.load_seconds()},
                                {"load_bytes", streams.load_bytes()},
                                {"load_stages", streams.load_stages()},
                                {"graph_steps", streams.decoder().graph_steps()}});
  if (streams.count() == 1) result.detail.set("read_gb_per_s", bytes * result.value * 1e-9);
  return result;
}

struct DecodeRates {
  std::vector<double> tokens;  ///< a second, of each repetition
  double host_share = 0;       ///< of the time: in which the device may have stood still
};
Result<DecodeRates> decode_rates(const BenchContext& context, const DecodeShape& shape, int prompt,
                                 Streams& streams) {
  for (int s = 0; s < shape.streams && prompt > 0; s++) FS_TRY(streams.prefill(s, 0, prompt));
  const SystemClock clock;
  double idle = 0, spent = 0;
  bool warm = false;  // the first repetition captures its steps
  const auto repetition = [&]() -> Status {
    const double before = streams.decoder().idle_seconds();
    const Nanoseconds start = clock.now();
    for (int t = 0; t < shape.tokens; t++) FS_TRY(streams.decode(prompt + t));
    if (warm) {
      spent += std::chrono::duration<double>(clock.now() - start).count();
      idle += streams.decoder().idle_seconds() - before;
    }
    warm = true;
    return {};
  };
  DecodeRates rates;
  FS_ASSIGN(rates.tokens,
            measure(context, static_cast<double>(shape.streams) * shape.tokens, repetition));
  rates.host_share = idle / spent;
  return rates;
}

/// Loads from pinned memory, which is told of beside what it took to bring the tensors there, or
/// why they are not there.
Status add_preloaded(const BenchContext& context, const ModelBundle& bundle, Json& detail) {
  const SystemClock clock;
  FS_ASSIGN(auto device, context.device.make(context.lanes));
  const Nanoseconds start = clock.now();
  const PreloadWatch watch{{}, [&] { return context.cancel.raised(); }};
  const auto preloaded = preload(*device, bundle, std::numeric_limits<uint64_t>::max(), watch);
  if (!preloaded.ok() && preloaded.error().code == ErrorCode::kResourceExhausted) {
    detail.set("not_preloaded", preloaded.error().message());
    return {};
  }
  if (!preloaded.ok()) return preloaded.error();
  const double seconds = std::chrono::duration<double>(clock.now() - start).count();
  FS_ASSIGN(const auto streams,
            Streams::begin(context, *preloaded, 1, kPrompt, kWithoutGraphs, std::move(device)));
  FS_TRY(streams->finish_loading());
  detail.set("preload_seconds", seconds);
  detail.set("load_preloaded_seconds", streams->load_seconds());
  detail.set("load_preloaded_bytes_per_second", streams->load_bytes() / streams->load_seconds());
  detail.set("load_preloaded_stages", streams->load_stages());
  return {};
}

/// Seconds from nothing to the first token after a prompt that is there before the weights are.
Result<double> first_token_seconds(const BenchContext& context, const ModelBundle& bundle,
                                   bool after_load) {
  FS_ASSIGN(const auto streams, Streams::begin(context, bundle, 1, kPrompt, kWithoutGraphs));
  if (after_load) FS_TRY(streams->finish_loading());
  FS_TRY(streams->prefill(0, 0, kPrompt));
  return streams->seconds();
}

}  // namespace

Result<BenchResult> bench_decoding(const BenchContext& context, const DecodeShape& shape) {
  const int prompt =
      shape.streams == 1 ? 0 : kPrompt;  // as llama-bench and llama-batched-bench measure
  FS_ASSIGN(const ModelBundle bundle, random_bundle(config_of(shape.model), shape.format));
  BenchResult result;
  bool captures = false, fuses = false;
  double copies = 0;
  {
    FS_ASSIGN(const auto streams,
              Streams::load(context, bundle, shape.streams, prompt + shape.tokens));
    FS_ASSIGN(const auto rates, decode_rates(context, shape, prompt, *streams));
    FS_ASSIGN(result, result_of(context, rates.tokens, *streams, shape.format));
    if (streams->decoder().draws()) result.detail.set("host_share", rates.host_share);
    captures = streams->decoder().graph_steps() > 0;
    fuses = shape.streams <= streams->device().make_decode_ops()->fused_rows();
    FS_ASSIGN(copies, host_copy_rate(streams->device()));
  }
  if (copies > 0) result.detail.set("host_copy_bytes_per_second", copies);
  if (!captures) return result;
  // What graphs are worth: the same steps without.
  {
    FS_ASSIGN(const auto streams,
              Streams::load(context, bundle, shape.streams, prompt + shape.tokens, kWithoutGraphs));
    FS_ASSIGN(const auto rates, decode_rates(context, shape, prompt, *streams));
    FS_ASSIGN(const BenchResult without, result_of(context, rates.tokens, *streams, shape.format));
    result.detail.set("without_graphs", without.value);
    result.detail.set("load_again_seconds", streams->load_seconds());  // kernels are loaded by then
    result.detail.set("load_again_stages", streams->load_stages());
  }
  if (fuses) {  // and of the way that is not taken unless it is asked for
    FS_ASSIGN(const auto streams,
              Streams::load(context, bundle, shape.streams, prompt + shape.tokens,
                            {.kernels = StepKernels::kFused}));
    FS_ASSIGN(const auto rates, decode_rates(context, shape, prompt, *streams));
    FS_ASSIGN(const BenchResult fused, result_of(context, rates.tokens, *streams, shape.format));
    result.detail.set("as_one_kernel", fused.value);
  }
  FS_TRY(add_preloaded(context, bundle, result.detail));
  // The one that waits goes first: the prompt's kernels are loaded then, too.
  FS_ASSIGN(const double waited, first_token_seconds(context, bundle, /*after_load=*/true));
  FS_ASSIGN(const double beside, first_token_seconds(context, bundle, /*after_load=*/false));
  result.detail.set("first_token_after_load_seconds", waited);
  result.detail.set("first_token_seconds", beside);
  return result;
}

Result<BenchResult> bench_prefill(const BenchContext& context, BenchModel model,
                                  WeightFormat format, int tokens) {
  FS_ASSIGN(const ModelBundle bundle, random_bundle(config_of(model), format));
  FS_ASSIGN(const auto streams, Streams::load(context, bundle, 1, tokens));
  const auto repetition = [&] { return streams->prefill(0, 0, tokens); };
  FS_ASSIGN(const auto rates, measure(context, tokens, repetition));
  FS_ASSIGN(BenchResult result, result_of(context, rates, *streams, format));
  result.detail.set("read_gb_per_s", Json());
  return result;
}

}  // namespace fastserve
