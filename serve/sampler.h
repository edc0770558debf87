// From a row of logits to a token.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "model/decode_ops.h"
#include "serve/logit_scan.h"
#include "serve/request.h"

namespace fastserve {

/// Applies SamplingParameters to logits as Hugging Face's processors do, and draws.
///
/// Order: repetition penalty, temperature, top-k (ties with the k-th stay), top-p (tokens stay
/// while the mass above them is below p; of equal ones the lower ids first), min-p. A temperature
/// below 1e-6 takes the likeliest token, of equal ones the lowest id.
///
/// Owns:     scratch for one vocabulary, allocated once; only asked-for logprobs allocate.
/// Threads:  one caller.
/// Promises: a token depends on the logits, the parameters, the history and its index, on nothing
///           drawn before; the same on every machine for the same logits.
class TokenSampler {
 public:
  explicit TokenSampler(int vocab_size);

  /// The token number `index` of an answer. `history`: prompt and answer so far, for the repetition
  /// penalty. kInternal when the logits are not finite.
  Result<GeneratedToken> sample(std::span<const float> logits, const SamplingParameters& parameters,
                                std::span<const int32_t> history, int64_t index);

  /// What sample() draws from: tokens ascending, with weights that sum to `total`. Valid until the
  /// next call.
  struct Distribution {
    std::span<const int32_t> tokens;
    std::span<const float> weights;
    double total = 0;
  };
  Result<Distribution> distribution(std::span<const float> logits,
                                    const SamplingParameters& parameters,
                                    std::span<const int32_t> history);

 private:
  struct Cut {
    float logit;
    int32_t last_of_equal;  ///< among logits equal to `logit`, ids up to this one stay
  };
  std::span<const float> penalise(std::span<const float> logits, double penalty,
                                  std::span<const int32_t> history);
  Cut find_cut(std::span<const float> logits, const SamplingParameters& parameters);
  Cut top_p_cut(std::span<const float> logits, const SamplingParameters& parameters,
                bool among_all);
  Cut crossing(std::span<const float> logits, double mass, float scale);
  double narrow_to_bin(std::span<const float> logits, double mass, float scale);
  void keep(std::span<const float> logits, Cut cut, float scale);
  double sum_blocks(std::span<const float> weights);
  int32_t draw(const Distribution& from, double uniform) const;
  void add_logprobs(std::span<const float> logits, int top, GeneratedToken& token);

  const int vocab_size_;
  LogitScan scan_;
  std::vector<int32_t> every_token_;      // 0 .. vocab-1
  std::vector<float> penalised_, dense_;  // dense_[id]: weight of id, where computed
  std::vector<uint32_t> seen_;            // seen_[id] == round_: already penalised
  uint32_t round_ = 0;
  std::vector<int32_t> kept_, order_;
  std::vector<float> kept_weights_;
  std::vector<double> block_sums_;
  static constexpr size_t kBins = 1024;
  std::array<double, kBins> bin_mass_;
};

/// What sample() says of logits that are not finite.
Error logits_not_finite();

/// How a device that draws is asked for token number `index` of an answer. Its distribution is
/// sample()'s; its sums are exact and sample()'s are floats', so that for one draw in some hundred
/// thousand, between two tokens, the other may be taken. Nothing when sample() has to do it: with
/// a repetition penalty, or where logprobs are asked for. That depends on the parameters alone.
std::optional<TokenDraw> draw_on_device(const SamplingParameters& parameters, int64_t index);

/// The probability of every token after the processors: the whole vocabulary, zeros included. A
/// parameter at its default leaves its processor out.
Result<std::vector<double>> filtered_probabilities(std::span<const float> logits,
                                                   const SamplingParameters& parameters,
                                                   std::span<const int32_t> history);

}  // namespace fastserve
