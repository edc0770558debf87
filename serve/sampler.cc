#include "serve/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/rng.h"

namespace fastserve {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kSumBlock = 64;
constexpr size_t kFewTokens = 2048;  ///< so many are selected from without bins
constexpr float kBinsPerNat = 32;

bool greedy(const SamplingParameters& p) { return p.temperature < 1e-6; }

/// The smallest float that is not below `x`.
float round_up(double x) {
  const float near = static_cast<float>(x);
  return near < x ? std::nextafter(near, kInfinity) : near;
}

/// The sum of a block in a fixed order that vector lanes can follow.
double block_sum(const float* weights, size_t n) {
  float lane[8] = {};
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (size_t l = 0; l < 8; ++l) lane[l] += weights[i + l];
  for (; i < n; ++i) lane[i % 8] += weights[i];
  double sum = 0;
  for (float l : lane) sum += l;
  return sum;
}

}  // namespace

Error logits_not_finite() {
  return {ErrorCode::kInternal, "the model's logits are not finite", "",
          "its weights may be damaged: `fsctl models verify` checks them"};
}

std::optional<TokenDraw> draw_on_device(const SamplingParameters& parameters, int64_t index) {
  if (parameters.repetition_penalty != 1.0 || parameters.top_logprobs >= 0) return std::nullopt;
  return TokenDraw{.temperature = static_cast<float>(parameters.temperature),
                   .top_k = parameters.top_k,
                   .top_p = static_cast<float>(parameters.top_p),
                   .min_p = static_cast<float>(parameters.min_p),
                   .uniform = Rng(parameters.seed, static_cast<uint64_t>(index)).uniform()};
}

TokenSampler::TokenSampler(int vocab_size)
    : vocab_size_(vocab_size),
      scan_(vocab_size),
      every_token_(static_cast<size_t>(vocab_size)),
      penalised_(every_token_.size()),
      dense_(every_token_.size()),
      seen_(every_token_.size()),
      block_sums_(every_token_.size() / kSumBlock + 1) {
  std::iota(every_token_.begin(), every_token_.end(), 0);
  kept_.reserve(every_token_.size());
  order_.reserve(every_token_.size());
  kept_weights_.reserve(every_token_.size());
}

Result<GeneratedToken> TokenSampler::sample(std::span<const float> logits,
                                            const SamplingParameters& parameters,
                                            std::span<const int32_t> history, int64_t index) {
  FS_ASSIGN(const Distribution from, distribution(logits, parameters, history));
  Rng rng(parameters.seed, static_cast<uint64_t>(index));
  GeneratedToken token;
  token.token = from.tokens.size() == 1 ? from.tokens[0] : draw(from, rng.uniform());
  if (parameters.top_logprobs >= 0) add_logprobs(logits, parameters.top_logprobs, token);
  return token;
}

Result<TokenSampler::Distribution> TokenSampler::distribution(std::span<const float> logits,
                                                              const SamplingParameters& parameters,
                                                              std::span<const int32_t> history) {
  FS_CHECK(logits.size() == every_token_.size());
  if (parameters.repetition_penalty != 1.0)
    logits = penalise(logits, parameters.repetition_penalty, history);
  if (!scan_.scan(logits)) return logits_not_finite();
  if (greedy(parameters)) {
    kept_.assign(1, scan_.argmax());
    kept_weights_.assign(1, 1.0f);
    return Distribution{kept_, kept_weights_, 1.0};
  }
  const float scale = static_cast<float>(1.0 / parameters.temperature);
  const Cut cut = find_cut(logits, parameters);
  if (cut.logit == -kInfinity) {
    exp_weights(logits, scan_.max(), scale, dense_);
    return Distribution{every_token_, dense_, sum_blocks(dense_)};
  }
  keep(logits, cut, scale);
  return Distribution{kept_, kept_weights_, sum_blocks(kept_weights_)};
}

std::span<const float> TokenSampler::penalise(std::span<const float> logits, double penalty,
                                              std::span<const int32_t> history) {
  std::copy(logits.begin(), logits.end(), penalised_.begin());
  if (++round_ == 0) {  // the counter came round: forget its old values
    std::fill(seen_.begin(), seen_.end(), 0u);
    round_ = 1;
  }
  for (int32_t token : history) {
    if (token < 0 || token >= vocab_size_) continue;
    const size_t i = static_cast<size_t>(token);
    if (seen_[i] == round_) continue;
    seen_[i] = round_;
    penalised_[i] =
        static_cast<float>(penalised_[i] < 0 ? penalised_[i] * penalty : penalised_[i] / penalty);
  }
  return penalised_;
}

TokenSampler::Cut TokenSampler::find_cut(std::span<const float> logits,
                                         const SamplingParameters& parameters) {
  Cut cut{-kInfinity, vocab_size_};
  if (parameters.top_k > 0 && parameters.top_k < vocab_size_)
    cut.logit = scan_.kth_largest(parameters.top_k);
  if (parameters.top_p < 1.0) {
    const bool among_all = cut.logit == -kInfinity;
    if (!among_all) scan_.collect(cut.logit, order_);
    cut = top_p_cut(logits, parameters, among_all);
  }
  if (parameters.min_p > 0) {
    const float least = round_up(scan_.max() + std::log(parameters.min_p) * parameters.temperature);
    if (least > cut.logit) cut = {least, vocab_size_};
  }
  return cut;
}

TokenSampler::Cut TokenSampler::top_p_cut(std::span<const float> logits,
                                          const SamplingParameters& parameters, bool among_all) {
  const float scale = static_cast<float>(1.0 / parameters.temperature);
  const auto mass_of_order = [&] {
    double mass = 0;
    for (int32_t id : order_) mass += dense_[static_cast<size_t>(id)];
    return mass;
  };
  if (!among_all) {  // order_ holds the tokens that top-k kept
    for (int32_t id : order_) {
      const size_t i = static_cast<size_t>(id);
      dense_[i] = exp_weight(logits[i], scan_.max(), scale);
    }
    return crossing(logits, parameters.top_p * mass_of_order(), scale);
  }
  exp_weights(logits, scan_.max(), scale, dense_);
  const double mass = parameters.top_p * sum_blocks(dense_);
  // Most of the mass is near the top: look there before looking everywhere.
  for (const double ratio : {1e-2, 1e-4}) {
    scan_.collect(round_up(scan_.max() + std::log(ratio) * parameters.temperature), order_);
    if (mass_of_order() >= mass) return crossing(logits, mass, scale);
  }
  order_.assign(every_token_.begin(), every_token_.end());
  return crossing(logits, mass, scale);
}

/// The token of order_ at which the running sum, likeliest first, reaches `mass`: a selection by
/// halves, so that only the part around the answer is ever sorted.
TokenSampler::Cut TokenSampler::crossing(std::span<const float> logits, double mass, float scale) {
  const auto likelier = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  const auto weight = [&](auto it) { return double{dense_[static_cast<size_t>(*it)]}; };
  double above = order_.size() > kFewTokens ? narrow_to_bin(logits, mass, scale) : 0.0;
  auto begin = order_.begin(), end = order_.end();
  while (end - begin > 64) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, likelier);
    double upper = 0;
    for (auto it = begin; it != middle; ++it) upper += weight(it);
    if (above + upper >= mass) {
      end = middle;
    } else {
      above += upper;
      begin = middle;
    }
  }
  std::sort(begin, end, likelier);
  auto last = begin;
  for (above += weight(last); above < mass && last + 1 != end; above += weight(last)) ++last;
  return {logits[static_cast<size_t>(*last)], *last};
}

/// Leaves in order_ only the tokens of the likelihood bin in which the running sum reaches `mass`;
/// returns the mass above that bin.
double TokenSampler::narrow_to_bin(std::span<const float> logits, double mass, float scale) {
  const auto bin_of = [&](int32_t id) {
    const float below = (scan_.max() - logits[static_cast<size_t>(id)]) * (scale * kBinsPerNat);
    return below < kBins - 1 ? static_cast<size_t>(below) : kBins - 1;
  };
  bin_mass_.fill(0);
  for (int32_t id : order_) bin_mass_[bin_of(id)] += dense_[static_cast<size_t>(id)];
  size_t last = kBins - 1;
  while (bin_mass_[last] == 0) --last;
  double above = 0;
  size_t bin = 0;
  for (; bin < last && above + bin_mass_[bin] < mass; ++bin) above += bin_mass_[bin];
  std::erase_if(order_, [&](int32_t id) { return bin_of(id) != bin; });
  return above;
}

void TokenSampler::keep(std::span<const float> logits, Cut cut, float scale) {
  scan_.collect(cut.logit, kept_);
  std::erase_if(kept_, [&](int32_t id) {
    return logits[static_cast<size_t>(id)] == cut.logit && id > cut.last_of_equal;
  });
  kept_weights_.resize(kept_.size());
  for (size_t i = 0; i < kept_.size(); ++i)
    kept_weights_[i] = exp_weight(logits[static_cast<size_t>(kept_[i])], scan_.max(), scale);
}

double TokenSampler::sum_blocks(std::span<const float> weights) {
  double total = 0;
  for (size_t begin = 0; begin < weights.size(); begin += kSumBlock) {
    const double sum =
        block_sum(weights.data() + begin, std::min(kSumBlock, weights.size() - begin));
    block_sums_[begin / kSumBlock] = sum;
    total += sum;
  }
  return total;
}

int32_t TokenSampler::draw(const Distribution& from, double uniform) const {
  double left = uniform * from.total;
  size_t begin = 0;
  const size_t n = from.weights.size();
  for (; begin + kSumBlock < n && left >= block_sums_[begin / kSumBlock]; begin += kSumBlock)
    left -= block_sums_[begin / kSumBlock];
  for (size_t i = begin; i < n; ++i) {
    if (left < from.weights[i]) return from.tokens[i];
    left -= from.weights[i];
  }
  size_t last = n - 1;  // rounding passed them all: the last that has any weight
  while (from.weights[last] <= 0) --last;
  return from.tokens[last];
}

void TokenSampler::add_logprobs(std::span<const float> logits, int top, GeneratedToken& token) {
  scan_.scan(logits);
  exp_weights(logits, scan_.max(), 1.0f, dense_);
  const double log_total = scan_.max() + std::log(sum_blocks(dense_));
  const auto logprob = [&](int32_t id) { return logits[static_cast<size_t>(id)] - log_total; };
  token.logprob = logprob(token.token);
  const int n = std::min(top, vocab_size_);
  if (n == 0) return;
  scan_.collect(scan_.kth_largest(n), order_);
  const auto likelier = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  std::partial_sort(order_.begin(), order_.begin() + n, order_.end(), likelier);
  for (int i = 0; i < n; ++i) {
    const int32_t id = order_[static_cast<size_t>(i)];
    token.top.push_back({id, logprob(id)});
  }
}

Result<std::vector<double>> filtered_probabilities(std::span<const float> logits,
                                                   const SamplingParameters& parameters,
                                                   std::span<const int32_t> history) {
  TokenSampler sampler(static_cast<int>(logits.size()));
  FS_ASSIGN(const TokenSampler::Distribution kept,
            sampler.distribution(logits, parameters, history));
  std::vector<double> probabilities(logits.size());
  for (size_t i = 0; i < kept.tokens.size(); ++i)
    probabilities[static_cast<size_t>(kept.tokens[i])] = kept.weights[i] / kept.total;
  return probabilities;
}

}  // namespace fastserve
