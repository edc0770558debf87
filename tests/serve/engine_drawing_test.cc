// An engine whose device draws tokens: it works on the next ones while the last are handed out.
#include <doctest/doctest.h>

#include <algorithm>

#include "serve/engine_group.h"
#include "tests/serve/engine_stage.h"

using namespace fastserve;

namespace {

GenerateRequest request(std::string prompt, int max_tokens = 8) {
  GenerateRequest r;
  r.prompt = std::move(prompt);
  r.max_tokens = max_tokens;
  r.sampling.temperature = 0;
  return r;
}

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

TEST_CASE("what is cancelled while the device is at work ends with the next step") {
  Stage stage({.draws = true});
  const uint64_t id = stage.ask(request("hello", 30)), other = stage.ask(request("other", 12));
  stage.step();
  stage.step();
  const uint64_t waiting = stage.ask(request("late", 30));
  for (const uint64_t gone : {id, waiting, id, uint64_t{77}}) stage.engine.cancel({gone});
  CHECK(stage.engine.has_work());
  stage.step();
  CHECK(stage.answers[id].finish == FinishReason::kCancelled);
  CHECK(stage.answers[id].generated_tokens == 2);  // the one that was on its way, too
  CHECK(stage.answers[id].tokens.size() == 2);
  CHECK(stage.answers[id].text.size() == 2);
  CHECK(stage.answers[waiting].finish == FinishReason::kCancelled);
  stage.run();
  CHECK(stage.answers[other].tokens == sure_answer(request("other", 12)).tokens);
  CHECK(stage.engine.health().kv_blocks_free == 16);
  CHECK(stage.engine.health().requests_finished == 3);
}

TEST_CASE("all requests can be cancelled while the device is at work on them") {
  Stage stage({.draws = true});
  const uint64_t first = stage.ask(request("a", 30)), second = stage.ask(request("b", 30));
  stage.step();
  stage.engine.cancel_all();
  CHECK(stage.engine.answering());
  stage.run();
  for (const uint64_t id : {first, second})
    CHECK(stage.answers[id].finish == FinishReason::kCancelled);
  CHECK_FALSE(stage.record->at_work);
  CHECK(stage.engine.health().kv_blocks_free == 16);
}

TEST_CASE("a request that ends by itself while it is cancelled ends once") {
  Stage stage({.draws = true});
  const uint64_t id = stage.ask(request("a", 1));
  stage.step();
  stage.engine.cancel({id});
  stage.run();
  CHECK(stage.answers[id].finish == FinishReason::kLength);
  CHECK(stage.engine.health().requests_finished == 1);
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

TEST_CASE("stop strings and end tokens end an answer before the device works on it again") {
  Stage stage({.vocab = 300, .eos = {299}, .draws = true});
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
  CHECK(stage.record->steps == 3);
  CHECK(stage.record->rows == 2 + 2 + 2 + 1);
}

TEST_CASE("a device that fails at work ends those requests, and their texts are not remembered") {
  Stage stage({.positions = 200, .blocks = 64, .max_rows = 128, .draws = true}, {.max_running = 2});
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

TEST_CASE("an engine that goes waits for what its device is at work on") {
  const auto record = std::make_shared<FakeRecord>();
  {
    Engine engine(std::make_unique<FakeDecoder>(FakeShape{.draws = true}, record),
                  std::make_shared<ByteTokenizer>(), {});
    REQUIRE(engine.submit({1}, engine.check(request("a")).value(), {}).ok());
    CHECK(engine.step({}).empty());
    CHECK(record->at_work);
  }
  CHECK_FALSE(record->at_work);
}

TEST_CASE("engines of one device leave it to each other, and each hears of its own failures") {
  const auto record = std::make_shared<FakeRecord>();  // the device's: one is at work at a time
  std::vector<std::unique_ptr<Engine>> engines;
  for (int i = 0; i < 2; ++i)
    engines.push_back(
        std::make_unique<Engine>(std::make_unique<FakeDecoder>(FakeShape{.draws = true}, record),
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
