#include "compress/measure.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/huggingface.h"

namespace fastserve {
namespace {

constexpr int kMostRounds = 1000;

Error stopped() { return {ErrorCode::kCancelled, "the compression was stopped", "measuring", ""}; }

bool is_raised(const CancelFlag* cancel) { return cancel != nullptr && cancel->raised(); }

Result<double> perplexity(Decoder& decoder, std::span<const std::vector<int32_t>> held_out,
                          size_t longest, std::span<const int32_t> blocks,
                          const std::function<void(double)>& progress, const CancelFlag* cancel) {
  double sum = 0;
  size_t count = 0, done = 0;
  for (const std::vector<int32_t>& sequence : held_out) {
    if (is_raised(cancel)) return stopped();
    if (progress) progress(static_cast<double>(done++) / static_cast<double>(held_out.size()));
    const size_t size = std::min(sequence.size(), longest);
    if (size < 2) continue;
    FS_ASSIGN(const std::vector<double> losses,
              decoder.score(std::span(sequence).first(size), blocks));
    sum = std::accumulate(losses.begin(), losses.end(), sum);
    count += losses.size();
  }
  return std::exp(sum / static_cast<double>(count));
}

Result<double> decode_speed(Decoder& decoder, const Clock& clock, int32_t token,
                            const MeasureOptions& options, std::span<const int32_t> blocks,
                            const CancelFlag* cancel) {
  const int tokens = std::max(1, std::min(options.speed_tokens, decoder.config().max_positions));
  std::vector<double> speeds;
  double spent = 0;
  // A small model's rounds are over before a core has woken: it gets more of them.
  for (int round = 0; round <= std::max(1, options.speed_rounds) ||
                      (spent < options.speed_seconds && round < kMostRounds);
       round++) {
    if (is_raised(cancel)) return stopped();
    const Nanoseconds start = clock.now();
    for (int position = 0; position < tokens; position++) {
      const Segment segment{0, 1, position, blocks};
      const int32_t wanted = 0;
      FS_TRY(decoder.step({&token, 1}, {&segment, 1}, {&wanted, 1}));
    }
    const double seconds = static_cast<double>((clock.now() - start).count()) * 1e-9;
    spent += seconds;
    if (round > 0) speeds.push_back(seconds > 0 ? tokens / seconds : 0);  // the first only warms up
  }
  std::nth_element(speeds.begin(), speeds.begin() + static_cast<std::ptrdiff_t>(speeds.size() / 2),
                   speeds.end());
  return speeds[speeds.size() / 2];
}

}  // namespace

Result<uint64_t> bundle_bytes(const ModelBundle& bundle) {
  uint64_t bytes = 0;
  for (const std::string& name : bundle.tensors->names()) {
    FS_ASSIGN(const TensorView view, bundle.tensors->tensor(name));
    bytes += view.bytes.size();
  }
  return bytes;
}

Result<Measurement> measure_model(Device& device, const Clock& clock, const ModelBundle& bundle,
                                  std::span<const std::vector<int32_t>> held_out,
                                  const MeasureOptions& options, const CancelFlag* cancel) {
  FS_ASSIGN(const ModelConfig config, bundle_config(bundle));
  size_t longest = 0;
  for (const auto& sequence : held_out) longest = std::max(longest, sequence.size());
  longest = std::min(longest, static_cast<size_t>(config.max_positions));
  if (longest < 2)
    return Error{ErrorCode::kInvalidArgument, "there is no text of two tokens to measure on",
                 "held-out text", "give more text with --data"};
  Measurement out;
  FS_ASSIGN(out.bytes, bundle_bytes(bundle));
  DecoderOptions decoding;
  decoding.weights = options.weights;
  decoding.kv = options.kv;
  const size_t positions =
      std::max(longest, static_cast<size_t>(std::max(1, options.speed_tokens)));
  decoding.kv_blocks = static_cast<int>(positions / static_cast<size_t>(decoding.block_tokens)) + 1;
  FS_ASSIGN(const std::unique_ptr<Decoder> decoder, Decoder::load(device, bundle, decoding));
  std::vector<int32_t> blocks(static_cast<size_t>(decoding.kv_blocks));
  std::iota(blocks.begin(), blocks.end(), 0);
  FS_ASSIGN(out.perplexity,
            perplexity(*decoder, held_out, longest, blocks, options.progress, cancel));
  FS_ASSIGN(out.tokens_per_second, decode_speed(*decoder, clock, 0, options, blocks, cancel));
  return out;
}

}  // namespace fastserve
