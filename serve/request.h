// What a client asks of a served model, and what comes back.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/result.h"

namespace fastserve {

/// Hugging Face's processors in its order: repetition penalty, temperature, top-k, top-p, min-p.
struct SamplingParameters {
  double temperature = 1.0;  ///< 0: greedy
  int top_k = 0;             ///< 0 and a whole vocabulary: off; ties with the k-th are kept
  double top_p = 1.0;        ///< smallest set whose mass reaches p; the crossing token is kept
  double min_p = 0.0;        ///< relative to the largest probability
  double repetition_penalty = 1.0;  ///< over prompt and generated tokens
  uint64_t seed = 0;                ///< same seed, same request, same model: same tokens
  int top_logprobs = -1;  ///< -1: no logprobs; n: of the chosen token and the n most likely (<= 20)

  /// kInvalidArgument naming the field for NaN, negative or absurd values.
  Status validate() const;
};

struct GenerateRequest {
  std::string model;                   ///< name of a deployed model; empty: the only one
  std::string prompt;                  ///< text; or
  std::vector<int32_t> prompt_tokens;  ///< ids, when `prompt` is empty
  int max_tokens = 128;
  SamplingParameters sampling;
  std::vector<std::string> stop;  ///< generation ends before the first of these; at most 16
  bool ignore_eos = false;
  std::optional<Nanoseconds> timeout;  ///< from submission; past it: FinishReason::kDeadline
};

enum class FinishReason : uint8_t {
  kNone,
  kEos,
  kStop,
  kLength,
  kContext,
  kCancelled,
  kDeadline,
  kError
};
const char* finish_reason_name(FinishReason reason);

/// A time limit as people give it; 0 and more than ten years: none. kInvalidArgument, naming
/// `field`, for what is negative or no number.
Result<std::optional<Nanoseconds>> timeout_from_seconds(double seconds,
                                                        const char* field = "timeout");

struct TokenLogprob {
  int32_t token = 0;
  double logprob = 0;  ///< log-softmax of the raw logits
};

struct GeneratedToken {
  int32_t token = 0;
  double logprob = 0;  ///< set when asked for
  std::vector<TokenLogprob> top;
};

/// One engine step's news of one request.
struct GenerateEvent {
  RequestId request;
  std::vector<GeneratedToken> tokens;
  std::string text;                             ///< newly settled text; never part of a stop string
  FinishReason finish = FinishReason::kNone;    ///< not kNone: the last event of this request
  std::optional<Error> error;                   ///< with kError
  int prompt_tokens = 0, generated_tokens = 0;  ///< set on the last event
};

}  // namespace fastserve
