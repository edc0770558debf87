// A whole answer gathered from a request's events.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "serve/service.h"

namespace fastserve {

struct Answer {
  std::string text;
  std::vector<GeneratedToken> tokens;
  FinishReason finish = FinishReason::kNone;
  int prompt_tokens = 0, generated_tokens = 0;
  double seconds = 0;

  /// Adds one event; true when it was the last. The event's error becomes this call's.
  Result<bool> absorb(GenerateEvent event);
};

/// Submits and waits on the caller's thread, where `on_text` gets each piece; returning false from
/// it, or raising `cancel`, cancels the request.
Result<Answer> generate_and_wait(GenerateService& service, const GenerateRequest& request,
                                 const std::function<bool(const std::string&)>& on_text,
                                 const CancelFlag& cancel);

}  // namespace fastserve
