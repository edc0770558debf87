#include "serve/request.h"

#include <fmt/format.h>

#include <cmath>

namespace fastserve {
namespace {

/// More tokens than any vocabulary has.
constexpr int kAbsurdTopK = 1 << 24;

template <class T>
Error refuse(const char* field, T value, const char* what, const char* hint) {
  return {ErrorCode::kInvalidArgument, fmt::format("{} is not {}", value, what), field, hint};
}

bool within(double value, double low, double high) {
  return std::isfinite(value) && value >= low && value <= high;
}

}  // namespace

Status SamplingParameters::validate() const {
  if (!within(temperature, 0, 100))
    return refuse("temperature", temperature, "a number from 0 to 100",
                  "0 takes the likeliest token");
  if (top_k < 0 || top_k > kAbsurdTopK)
    return refuse("top_k", top_k, "a number from 0 to 16777216", "0 turns it off");
  if (!within(top_p, 0, 1)) return refuse("top_p", top_p, "a number from 0 to 1", "1 turns it off");
  if (!within(min_p, 0, 1)) return refuse("min_p", min_p, "a number from 0 to 1", "0 turns it off");
  if (!within(repetition_penalty, 0.01, 100))
    return refuse("repetition_penalty", repetition_penalty, "a number from 0.01 to 100",
                  "1 turns it off");
  if (top_logprobs < -1 || top_logprobs > 20)
    return refuse("top_logprobs", top_logprobs, "from -1 to 20", "-1 turns it off");
  return {};
}

Result<std::optional<Nanoseconds>> timeout_from_seconds(double seconds, const char* field) {
  constexpr double kTenYears = 10.0 * 365 * 86400;
  if (!(seconds >= 0)) return refuse(field, seconds, "a number of seconds", "0 sets no limit");
  if (seconds == 0 || seconds > kTenYears) return std::optional<Nanoseconds>();
  // Rounded up: a moment is not the 0 that stands for none.
  return std::optional(Nanoseconds(static_cast<int64_t>(std::ceil(seconds * 1e9))));
}

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "none";
    case FinishReason::kEos:
      return "eos";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kContext:
      return "context";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kError:
      return "error";
  }
  return "unknown";
}

}  // namespace fastserve
