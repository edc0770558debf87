#include "serve/request.h"

#include <cmath>

namespace fastserve {
namespace {

Error refuse(const char* field, const char* what, const char* hint) {
  return {ErrorCode::kInvalidArgument, what, field, hint};
}

bool within(double value, double low, double high) {
  return std::isfinite(value) && value >= low && value <= high;
}

}  // namespace

Status SamplingParameters::validate() const {
  if (!within(temperature, 0, 100))
    return refuse("temperature", "not a number from 0 to 100", "0 takes the likeliest token");
  if (top_k < 0) return refuse("top_k", "negative", "0 turns it off");
  if (!within(top_p, 0, 1)) return refuse("top_p", "not a number from 0 to 1", "1 turns it off");
  if (!within(min_p, 0, 1)) return refuse("min_p", "not a number from 0 to 1", "0 turns it off");
  if (!within(repetition_penalty, 0.01, 100))
    return refuse("repetition_penalty", "not a number from 0.01 to 100", "1 turns it off");
  if (top_logprobs < -1 || top_logprobs > 20)
    return refuse("top_logprobs", "not from -1 to 20", "-1 turns it off");
  return {};
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
