// An engine over the fake decoder, for the tests of it.
#pragma once

#include <doctest/doctest.h>

#include <map>

#include "serve/engine.h"
#include "tests/serve/fake_model.h"

namespace fastserve {

/// For the likeliest tokens.
inline GenerateRequest request(std::string prompt, int max_tokens = 8) {
  GenerateRequest r;
  r.prompt = std::move(prompt);
  r.max_tokens = max_tokens;
  r.sampling.temperature = 0;
  return r;
}

struct Answer {
  std::vector<int32_t> tokens;
  std::string text;
  FinishReason finish = FinishReason::kNone;
  std::optional<Error> error;
  int prompt_tokens = 0, generated_tokens = 0, events = 0;
};

/// An engine over the fake decoder, and what it said so far.
struct Stage {
  std::shared_ptr<FakeRecord> record = std::make_shared<FakeRecord>();
  Engine engine;
  std::map<uint64_t, Answer> answers;
  uint64_t next = 1;
  Nanoseconds now{0};

  explicit Stage(const FakeShape& shape = {}, const SchedulerLimits& limits = {})
      : engine(std::make_unique<FakeDecoder>(shape, record), std::make_shared<ByteTokenizer>(),
               limits) {}

  uint64_t ask(GenerateRequest request) {
    auto checked = engine.check(std::move(request));
    REQUIRE_MESSAGE(checked.ok(), checked.error().message());
    REQUIRE(engine.submit({next}, *std::move(checked), now).ok());
    return next++;
  }
  void step() {
    for (GenerateEvent& e : engine.step(now)) {
      Answer& a = answers[e.request.value];
      CHECK(a.finish == FinishReason::kNone);
      ++a.events;
      for (const GeneratedToken& t : e.tokens) a.tokens.push_back(t.token);
      a.text += e.text;
      a.finish = e.finish;
      a.error = e.error;
      a.prompt_tokens = e.prompt_tokens;
      a.generated_tokens = e.generated_tokens;
    }
  }
  void run() {
    for (int i = 0; i < 5000 && engine.has_work(); ++i) step();
    REQUIRE_FALSE(engine.has_work());
  }
  Answer alone(GenerateRequest request) {
    const uint64_t id = ask(std::move(request));
    run();
    return answers[id];
  }
};

}  // namespace fastserve
