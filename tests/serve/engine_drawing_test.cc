// An engine whose device draws tokens: it works on the next ones while the last are handed out.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "serve/engine_group.h"
#include "tests/serve/engine_stage.h"

using namespace fastserve;

namespace {

/// What the same requests get of a device that does not draw.
Answer sure_answer(const GenerateRequest& asked) { return Stage().alone(asked); }

}  // namespace

TEST_CASE("the device has its next tokens to work on when the last ones are handed out") {
  Stage stage({.draws = true});
  const uint64_t id = stage.ask(request("hello", 5));
  stage.step();
  CHECK(stage.record->at_work);
  CHECK(stage.answers.empty());
  for (int token = 1; token < 5; ++token) {
    stage.step();
    CHECK(stage.record->at_work);
    CHECK(stage.answers[id].generated_tokens == 0);  // said at the end
    CHECK(stage.answers[id].tokens.size() == static_cast<size_t>(token));
    CHECK(stage.answers[id].text.size() == static_cast<size_t>(token));
  }
  stage.step();
  CHECK_FALSE(stage.record->at_work);
  CHECK_FALSE(stage.engine.has_work());
  CHECK(stage.record->steps == 5);  // none for what nobody wants
  CHECK(stage.answers[id].finish == FinishReason::kLength);
  CHECK(stage.answers[id].tokens == sure_answer(request("hello", 5)).tokens);
  CHECK(stage.answers[id].events == 5);
}

TEST_CASE("a request that comes while the device is at work takes part in its next step") {
  Stage stage({.draws = true});
  const uint64_t first = stage.ask(request("first", 6));
  stage.step();
  stage.step();
  const uint64_t second = stage.ask(request("second", 6));
  stage.step();
  CHECK(stage.record->most_segments == 2);
  stage.run();
  CHECK(stage.answers[first].tokens == sure_answer(request("first", 6)).tokens);
  CHECK(stage.answers[second].tokens == sure_answer(request("second", 6)).tokens);
}

TEST_CASE("what is cancelled while the device is at work ends at once, and the others go on") {
  for (const bool ahead : {false, true}) {
    CAPTURE(ahead);
    Stage stage({.draws = true, .ahead = ahead});
    const uint64_t id = stage.ask(request("hello", 30)), other = stage.ask(request("other", 12));
    stage.step();
    stage.step();
    const uint64_t waiting = stage.ask(request("late", 30));
    for (const uint64_t gone : {id, waiting, id, uint64_t{77}}) stage.engine.cancel({gone});
    const uint64_t next = stage.ask(request("next", 12));  // has the blocks that were given back
    stage.step();
    CHECK(stage.answers[id].finish == FinishReason::kCancelled);
    CHECK(stage.answers[id].generated_tokens == 1);  // what is on its way is nobody's
    CHECK(stage.answers[id].text.size() == 1);
    CHECK(stage.answers[waiting].finish == FinishReason::kCancelled);
    stage.run();
    CHECK(stage.answers[other].tokens == sure_answer(request("other", 12)).tokens);
    CHECK(stage.answers[next].tokens == sure_answer(request("next", 12)).tokens);
    CHECK(stage.engine.health().kv_blocks_free == 16);
    CHECK(stage.engine.health().requests_finished == 4);
  }
}

TEST_CASE("a device whose requests have all been cancelled is waited for") {
  for (const bool ahead : {false, true}) {
    Stage stage({.draws = true, .ahead = ahead});
    const uint64_t first = stage.ask(request("a", 30)), second = stage.ask(request("b", 30));
    stage.step();
    CHECK(stage.record->at_work == (ahead ? 2 : 1));
    stage.engine.cancel_all();
    CHECK_FALSE(stage.engine.answering());
    CHECK(stage.engine.has_work());
    stage.run();
    for (const uint64_t id : {first, second})
      CHECK(stage.answers[id].finish == FinishReason::kCancelled);
    CHECK(stage.record->at_work == 0);
    CHECK(stage.engine.health().kv_blocks_free == 16);
  }
}

TEST_CASE("the device has the step behind the one that it is at work on, as far as is known") {
  Stage stage({.draws = true, .ahead = true});
  const uint64_t id = stage.ask(request("hello", 5));
  stage.step();
  CHECK(stage.record->at_work == 2);
  for (int token = 1; token < 4; ++token) {
    stage.step();
    CHECK(stage.record->at_work == 2);
    CHECK(stage.answers[id].tokens.size() == static_cast<size_t>(token));
  }
  stage.step();
  CHECK(stage.record->at_work == 1);  // the last token that it may have
  stage.step();
  CHECK(stage.record->at_work == 0);
  CHECK(stage.record->steps == 5);
  CHECK(stage.answers[id].finish == FinishReason::kLength);
  CHECK(stage.answers[id].tokens == sure_answer(request("hello", 5)).tokens);
  CHECK_FALSE(stage.engine.has_work());
}

TEST_CASE("who has its last token to come has no row behind it, and others go on without") {
  Stage stage({.draws = true, .ahead = true});
  const std::vector<uint64_t> ids = {stage.ask(request("a", 2)), stage.ask(request("bc", 6)),
                                     stage.ask(request("def", 4))};
  stage.run();
  const int64_t prompts = 1 + 2 + 3, further = 1 + 5 + 3;
  CHECK(stage.record->rows == prompts + further);
  CHECK(stage.record->most_at_work == 2);
  CHECK(stage.answers[ids[0]].tokens == sure_answer(request("a", 2)).tokens);
  CHECK(stage.answers[ids[1]].tokens == sure_answer(request("bc", 6)).tokens);
  CHECK(stage.answers[ids[2]].tokens == sure_answer(request("def", 4)).tokens);
}

TEST_CASE("the context's end is known ahead") {
  Stage stage({.positions = 8, .draws = true, .ahead = true});
  const Answer got = stage.alone(request("hello", 50));
  CHECK(got.finish == FinishReason::kContext);
  CHECK(got.tokens == Stage({.positions = 8}).alone(request("hello", 50)).tokens);
  CHECK(stage.record->steps == static_cast<int64_t>(got.tokens.size()));
}

TEST_CASE("a request that comes is let in before the device has more to do for the others") {
  Stage stage({.draws = true, .ahead = true});
  stage.ask(request("first", 30));
  stage.step();
  stage.step();
  CHECK(stage.record->at_work == 2);
  const uint64_t second = stage.ask(request("second", 6));
  stage.step();
  CHECK(stage.record->at_work == 1);  // that is left of those that it had
  stage.step();
  CHECK(stage.record->most_segments == 2);
  stage.run();
  CHECK(stage.answers[second].tokens == sure_answer(request("second", 6)).tokens);
}

TEST_CASE("who samples on the host has every token before its next step") {
  Stage stage({.draws = true, .ahead = true});
  GenerateRequest curious = request("hello", 6);
  curious.sampling.top_logprobs = 2;
  const uint64_t id = stage.ask(curious), other = stage.ask(request("other", 6));
  stage.run();
  CHECK(stage.record->most_at_work == 1);
  CHECK(stage.answers[id].tokens == sure_answer(request("hello", 6)).tokens);
  CHECK(stage.answers[other].tokens == sure_answer(request("other", 6)).tokens);
}

TEST_CASE("what a device draws by the request's own numbers does not change ahead") {
  const auto draws_of = [](bool ahead) {
    Stage stage({.draws = true, .ahead = ahead});
    GenerateRequest warm = request("Once", 12);
    warm.sampling = {.temperature = 0.7, .top_k = 40, .seed = 5};
    stage.alone(warm);
    std::vector<double> uniforms;
    for (const TokenDraw& draw : stage.record->draws) uniforms.push_back(draw.uniform);
    return uniforms;
  };
  CHECK(draws_of(true) == draws_of(false));
}

TEST_CASE("an answer that is not a number ends its request, though the device goes on with it") {
  Stage stage({.draws = true, .ahead = true});
  const uint64_t id = stage.ask(request("a", 9));
  stage.step();
  stage.record->poison = std::nanf("");
  stage.step();
  stage.step();
  CHECK(stage.answers[id].finish == FinishReason::kNone);
  stage.run();
  REQUIRE(stage.answers[id].error);
  CHECK(stage.answers[id].error->what.find("not finite") != std::string::npos);
  stage.record->poison = 0;
  CHECK(stage.alone(request("b")).tokens == sure_answer(request("b")).tokens);
}

TEST_CASE("a deadline that passes while the device is at work ends the request") {
  Stage stage({.draws = true});
  GenerateRequest hasty = request("a", 50);
  hasty.timeout = Nanoseconds{100};
  const uint64_t id = stage.ask(hasty), other = stage.ask(request("b", 6));
  stage.step();
  stage.step();
  stage.now = Nanoseconds{100};
  stage.step();
  CHECK(stage.answers[id].finish == FinishReason::kDeadline);
  CHECK(stage.answers[id].tokens.size() == 2);
  CHECK(stage.answers[id].text.size() == 2);
  stage.run();
  CHECK(stage.answers[other].tokens == sure_answer(request("b", 6)).tokens);
}

TEST_CASE("stop strings and end tokens end an answer, if need be a step too late for the device") {
  for (const bool ahead : {false, true}) {
    Stage stage({.vocab = 300, .eos = {299}, .draws = true, .ahead = ahead});
    const auto say = [&](std::string text, const std::vector<int32_t>& answer) {
      std::vector<int32_t> tokens(text.begin(), text.end());
      for (const int32_t token : answer) {
        stage.record->script[tokens] = token;
        tokens.push_back(token);
      }
    };
    say("ab", {'c', 'd', 'e', 'f'});
    say("xy", {'z', 299});
    GenerateRequest stopping = request("ab", 20);
    stopping.stop = {"de"};
    const uint64_t stopped = stage.ask(stopping), ended = stage.ask(request("xy", 20));
    stage.run();
    CHECK(stage.answers[stopped].text == "c");
    CHECK(stage.answers[stopped].finish == FinishReason::kStop);
    CHECK(stage.answers[ended].text == "z");
    CHECK(stage.answers[ended].finish == FinishReason::kEos);
    CHECK(stage.record->steps == (ahead ? 4 : 3));
    CHECK(stage.record->rows == 2 + 2 + 2 + 1 + (ahead ? 2 : 0));
    CHECK(stage.engine.health().tokens_generated == 5);
  }
}

TEST_CASE("a device that fails at work ends those requests, and their texts are not remembered") {
  for (const bool ahead : {false, true}) {
    Stage stage({.positions = 200, .blocks = 64, .max_rows = 128, .draws = true, .ahead = ahead},
                {.max_running = 2});
    const std::string text(60, 'x');
    stage.record->failure = Error{ErrorCode::kUnavailable, "is lost", "card", ""};
    const uint64_t first = stage.ask(request(text)), second = stage.ask(request("short"));
    stage.step();
    CHECK(stage.record->at_work);  // nobody knows yet
    stage.record->failure.reset();
    const uint64_t waiting = stage.ask(request(text));
    const int64_t before = stage.record->rows;
    stage.run();
    for (const uint64_t id : {first, second}) {
      CHECK(stage.answers[id].finish == FinishReason::kError);
      REQUIRE(stage.answers[id].error);
      CHECK(stage.answers[id].error->message() == "card: is lost");
    }
    CHECK(stage.answers[waiting].finish == FinishReason::kLength);
    CHECK(stage.record->rows - before == 60 + 7);
    CHECK(stage.engine.health().kv_blocks_free == 64);
  }
}

TEST_CASE("an engine that goes waits for what its device is at work on") {
  const auto record = std::make_shared<FakeRecord>();
  {
    Engine engine(std::make_unique<FakeDecoder>(FakeShape{.draws = true, .ahead = true}, record),
                  std::make_shared<ByteTokenizer>(), {});
    REQUIRE(engine.submit({1}, engine.check(request("a")).value(), {}).ok());
    CHECK(engine.step({}).empty());
    CHECK(record->at_work == 2);
  }
  CHECK(record->at_work == 0);
}

TEST_CASE("a model leaves a device that is at work for nobody any more") {
  const auto record = std::make_shared<FakeRecord>();
  const FakeShape shape{.draws = true, .ahead = true};
  const FakeDecoder like(shape, std::make_shared<FakeRecord>());
  Engine engine(like.config(), like.options(),
                [&]() -> Result<std::unique_ptr<Decoder>> {
                  return std::unique_ptr<Decoder>(std::make_unique<FakeDecoder>(shape, record));
                },
                std::make_shared<ByteTokenizer>(), {});
  REQUIRE(engine.come().ok());
  REQUIRE(engine.submit({1}, engine.check(request("a")).value(), {}).ok());
  engine.step({});
  engine.cancel_all();
  CHECK(record->at_work == 2);
  REQUIRE_FALSE(engine.answering());
  engine.leave();
  CHECK(record->at_work == 0);
  REQUIRE(engine.come().ok());
  CHECK(engine.step({}).size() == 1);  // who was cancelled
}

TEST_CASE("answers that give way for want of blocks are what they are alone, ahead or not") {
  std::vector<GenerateRequest> asked;
  for (int i = 0; i < 14; ++i)
    asked.push_back(request(std::string(1 + static_cast<size_t>(i * 5 % 11), char('a' + i)), 9));
  Stage stage({.blocks = 18, .max_rows = 64, .draws = true, .ahead = true});
  std::vector<uint64_t> ids;
  for (const GenerateRequest& one : asked) ids.push_back(stage.ask(one));
  stage.run();
  for (size_t i = 0; i < asked.size(); ++i)
    CHECK(stage.answers[ids[i]].tokens == sure_answer(asked[i]).tokens);
  CHECK(stage.engine.health().preemptions > 0);
  CHECK(stage.record->most_at_work == 2);
  CHECK(stage.engine.health().kv_blocks_free == 18);
}

TEST_CASE("engines of one device leave it to each other, and each hears of its own failures") {
  const auto record = std::make_shared<FakeRecord>();  // the device's: one is at work at a time
  std::vector<std::unique_ptr<Engine>> engines;
  for (int i = 0; i < 2; ++i)
    engines.push_back(std::make_unique<Engine>(
        std::make_unique<FakeDecoder>(FakeShape{.draws = true, .ahead = true}, record),
        std::make_shared<ByteTokenizer>(), SchedulerLimits()));
  EngineGroup group(std::move(engines), {}, std::nullopt);
  std::map<uint64_t, Answer> answers;
  uint64_t next = 0;
  const auto ask = [&](size_t model, const GenerateRequest& asked) {
    const auto sink = [&](std::vector<GenerateEvent> events) {
      for (GenerateEvent& e : events) {
        for (const GeneratedToken& t : e.tokens) answers[e.request.value].tokens.push_back(t.token);
        answers[e.request.value].finish = e.finish;
      }
    };
    group.submit(model, {++next}, group.engine(model).check(asked).value(), sink, {});
    return next;
  };
  const auto run = [&] {
    for (int i = 0; i < 100 && group.has_work(); ++i) group.step({});
    REQUIRE_FALSE(group.has_work());
  };
  const uint64_t one = ask(0, request("one")), other = ask(1, request("other", 5));
  run();
  CHECK(answers[one].tokens == sure_answer(request("one")).tokens);
  CHECK(answers[other].tokens == sure_answer(request("other", 5)).tokens);
  const uint64_t alone = ask(1, request("alone"));
  group.step({});
  CHECK(record->at_work);  // nobody else wants it
  record->failure = Error{ErrorCode::kUnavailable, "is lost", "card", ""};
  group.step({});
  record->failure.reset();
  const uint64_t after = ask(0, request("after"));
  run();
  CHECK(answers[alone].finish == FinishReason::kError);
  CHECK(answers[after].tokens == sure_answer(request("after")).tokens);
}
