// One request of an engine. For engine.cc and engine_steps.cc alone.
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "serve/engine.h"
#include "serve/stop_matcher.h"

namespace fastserve {

/// One request from submission to its last event.
struct Engine::Live : Sequence {
  Live(RequestId request_id, GenerateRequest asked, std::shared_ptr<const Tokenizer> tokenizer)
      : id(request_id),
        request(std::move(asked)),
        decoder(std::move(tokenizer), /*skip_special_tokens=*/true),
        stops(request.stop) {
    tokens = std::move(request.prompt_tokens);
    prompt_tokens = static_cast<int>(tokens.size());
  }
  int generated() const { return static_cast<int>(tokens.size()) - prompt_tokens; }

  RequestId id;
  GenerateRequest request;
  StreamDecoder decoder;
  StopMatcher stops;
  int prompt_tokens = 0;
  std::optional<Nanoseconds> deadline;
  std::optional<GeneratedToken> unwritten;  ///< the last token, while it is no text yet
  int64_t events_of = -1;                   ///< Engine::events_given_ when it last had an event
  size_t event = 0;                         ///< that one's index in events_
  int row = -1;                             ///< its answer's of the step at work that began last
};

}  // namespace fastserve
