// Greedy decoding and prompt scores through the paged KV cache.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/decoder.h"
#include "model/transformer/parity_reference.h"

namespace fastserve {
namespace {

constexpr double kLogits = 1e-4, kLogprobs = 1e-4;
constexpr int kBlockTokens = 16;
/// Small, so that a prompt of the usual length arrives in several chunks.
constexpr int kMaxRows = 20;

struct Continuation {
  std::vector<int32_t> tokens;
  std::vector<float> logits;  // [tokens, vocab]
};

int32_t best(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// Blocks in descending order: a decoder that ignored the block table would read the wrong ones.
std::vector<int32_t> all_blocks(const Decoder& decoder) {
  std::vector<int32_t> blocks(static_cast<size_t>(decoder.options().kv_blocks));
  std::iota(blocks.rbegin(), blocks.rend(), 0);
  return blocks;
}

Result<Continuation> continue_greedily(Decoder& decoder, std::vector<int32_t> next, size_t count) {
  const std::vector<int32_t> blocks = all_blocks(decoder);
  Continuation out;
  int position = 0;
  while (out.tokens.size() < count) {
    const int chunk = std::min(kMaxRows, static_cast<int>(next.size()));
    const Segment segment{.first_row = 0, .rows = chunk, .position = position, .blocks = blocks};
    const int32_t wanted = chunk - 1;
    FS_ASSIGN(const auto logits, decoder.step(std::span(next).first(static_cast<size_t>(chunk)),
                                              {&segment, 1}, {&wanted, 1}));
    position += chunk;
    if (static_cast<size_t>(chunk) < next.size()) {
      next.erase(next.begin(), next.begin() + chunk);
      continue;
    }
    out.logits.insert(out.logits.end(), logits.begin(), logits.end());
    out.tokens.push_back(best(logits));
    next = {out.tokens.back()};
  }
  return out;
}

size_t mismatches(std::span<const int64_t> truth, std::span<const int32_t> ours) {
  size_t wrong =
      truth.size() > ours.size() ? truth.size() - ours.size() : ours.size() - truth.size();
  for (size_t i = 0; i < std::min(truth.size(), ours.size()); ++i) wrong += truth[i] != ours[i];
  return wrong;
}

Status check_top5(const ParityReference& reference, const ModelConfig& config,
                  const Continuation& run, ParityLog& log) {
  if (!reference.has("greedy.top5_ids") || !reference.has("greedy.top5_logprobs")) {
    log.skip("greedy top 5", "not in the reference");
    return {};
  }
  const int64_t steps = static_cast<int64_t>(run.tokens.size());
  FS_ASSIGN(const auto ids, reference.integers("greedy.top5_ids", {steps, 5}));
  FS_ASSIGN(const auto logprobs, reference.doubles("greedy.top5_logprobs", {steps, 5}));
  const size_t vocab = static_cast<size_t>(config.vocab_size);
  double worst = 0;
  size_t wrong = 0;
  for (size_t s = 0; s < run.tokens.size(); ++s) {
    const std::span<const float> logits(run.logits.data() + s * vocab, vocab);
    const double peak = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (float v : logits) sum += std::exp(v - peak);
    std::vector<int32_t> order(vocab);
    std::iota(order.begin(), order.end(), 0);
    const size_t kept = std::min<size_t>(5, vocab);
    std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(kept), order.end(),
                      [&](int32_t a, int32_t b) {
                        return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
                      });
    for (size_t k = 0; k < kept; ++k) {
      wrong += order[k] != ids[s * 5 + k];
      const double ours = logits[static_cast<size_t>(order[k])] - peak - std::log(sum);
      const double difference = std::abs(ours - logprobs[s * 5 + k]);
      if (!(difference <= worst)) worst = difference;
    }
  }
  log.compare("greedy top-5 tokens that differ", static_cast<double>(wrong), 0);
  log.compare("greedy top-5 logprobs, largest difference", worst,
              reference.tolerance(kLogprobs, "greedy_logprob_max_abs"));
  return {};
}

Status check_with_eos(const ParityReference& reference, const Continuation& run, ParityLog& log) {
  const Json* greedy = reference.json().find_set("greedy");
  const Json* with_eos = greedy ? greedy->find_set("with_eos") : nullptr;
  const Json* truth = with_eos ? with_eos->find_set("tokens") : nullptr;
  if (!truth || !truth->is_array()) {
    log.skip("greedy until the end token", "not in the reference");
    return {};
  }
  FS_ASSIGN(const int64_t eos, with_eos->int_or("eos_token_id", -1));
  std::vector<int64_t> expected;
  for (const Json& token : truth->as_array())
    expected.push_back(token.is_int() ? token.as_int() : -1);
  const auto end = std::find(run.tokens.begin(), run.tokens.end(), eos);
  const size_t kept = static_cast<size_t>(end - run.tokens.begin()) + (end != run.tokens.end());
  log.compare("greedy until the end token, tokens that differ",
              static_cast<double>(mismatches(expected, std::span(run.tokens).first(kept))), 0);
  return {};
}

/// Decoder::score against token_loss, where the labels are the next tokens.
Status check_scores(const ParityModel& model, const ParityReference& reference, Decoder& decoder,
                    ParityLog& log) {
  if (!reference.has("input_ids") || !reference.has("labels") || !reference.has("token_loss")) {
    log.skip("prompt logprobs", "not in the reference");
    return {};
  }
  FS_ASSIGN(const auto ids, reference.integers("input_ids", {-1, -1}));
  FS_ASSIGN(const auto shape, reference.shape("input_ids"));
  FS_ASSIGN(const auto labels, reference.integers("labels", shape));
  FS_ASSIGN(const auto truth, reference.doubles("token_loss", {shape[0], shape[1] - 1}));
  FS_TRY(labelled_batch(model.config, ids, labels, shape[0], shape[1]));
  const std::vector<int32_t> blocks = all_blocks(decoder);
  const size_t length = static_cast<size_t>(shape[1]);
  double worst = 0;
  for (size_t b = 0; b < static_cast<size_t>(shape[0]); ++b) {
    const auto row = std::span(ids).subspan(b * length, length);
    FS_ASSIGN(const std::vector<double> scores,
              decoder.score(std::vector<int32_t>(row.begin(), row.end()), blocks));
    for (size_t t = 0; t + 1 < length; ++t) {
      if (labels[b * length + t + 1] != row[t + 1]) continue;
      const double difference = std::abs(scores[t] - truth[b * (length - 1) + t]);
      if (!(difference <= worst)) worst = difference;
    }
  }
  log.compare("prompt logprobs, largest difference", worst,
              reference.tolerance(kLogprobs, "token_loss_max_abs"));
  return {};
}

}  // namespace

Status check_greedy(const ParityModel& model, const ParityReference& reference, Device& device,
                    ParityLog& log) {
  if (!reference.has("greedy.prompt") || !reference.has("greedy.tokens")) {
    log.skip("greedy decoding", "not in the reference");
    return {};
  }
  FS_ASSIGN(const auto prompt, reference.integers("greedy.prompt", {-1}));
  FS_ASSIGN(const auto tokens, reference.integers("greedy.tokens", {-1}));
  FS_TRY(labelled_batch(model.config, prompt, prompt, 1, static_cast<int64_t>(prompt.size())));
  size_t longest = prompt.size() + tokens.size();
  if (longest > static_cast<size_t>(model.config.max_positions) || prompt.empty())
    return Error{ErrorCode::kCorrupt, "the greedy continuation is longer than the context",
                 reference.where(), "the reference does not belong to this model"};
  if (reference.has("input_ids")) {
    FS_ASSIGN(const auto shape, reference.shape("input_ids"));
    longest = std::max(longest, static_cast<size_t>(shape.back()));
  }
  DecoderOptions options;
  options.weights = WeightFormat::kFloat32;
  options.kv = KvType::kFloat32;
  options.block_tokens = kBlockTokens;
  options.kv_blocks = static_cast<int>((longest + kBlockTokens - 1) / kBlockTokens) + 1;
  options.max_rows = kMaxRows;
  FS_ASSIGN(const auto decoder, Decoder::load(device, model.bundle, options));
  FS_ASSIGN(const Continuation run,
            continue_greedily(*decoder, std::vector<int32_t>(prompt.begin(), prompt.end()),
                              tokens.size()));
  log.compare("greedy tokens that differ", static_cast<double>(mismatches(tokens, run.tokens)), 0);
  if (reference.has("greedy.logits")) {
    FS_ASSIGN(const auto truth,
              reference.doubles("greedy.logits",
                                {static_cast<int64_t>(tokens.size()), model.config.vocab_size}));
    log.compare("greedy logits, largest difference", largest_difference(truth, run.logits),
                reference.tolerance(kLogits, "logits_max_abs"));
  }
  FS_TRY(check_top5(reference, model.config, run, log));
  FS_TRY(check_with_eos(reference, run, log));
  return check_scores(model, reference, *decoder, log);
}

}  // namespace fastserve
