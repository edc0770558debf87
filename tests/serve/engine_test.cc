#include "serve/engine.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "serve/stop_matcher.h"
#include "tests/serve/engine_stage.h"

using namespace fastserve;

namespace {

/// Makes the decoder continue `prompt` with `answer`.
void script(Stage& stage, const std::string& prompt, const std::string& answer) {
  std::vector<int32_t> text(prompt.begin(), prompt.end());
  for (const char c : answer) {
    stage.record->script[text] = c;
    text.push_back(c);
  }
}

std::string where(const Result<GenerateRequest>& result) {
  return result.ok() ? "accepted" : result.error().where;
}

}  // namespace

TEST_CASE(
    "a device that fails ends the requests it is at work on, with its reason, and no others") {
  Stage stage({.max_rows = 8}, {.max_running = 2});
  GenerateRequest request;
  request.prompt = "hello";
  request.max_tokens = 4;
  const uint64_t first = stage.ask(request), second = stage.ask(request);
  const uint64_t waiting = stage.ask(request);
  stage.step();
  stage.record->failure = Error{ErrorCode::kUnavailable, "is lost", "card", ""};
  stage.step();
  stage.record->failure.reset();
  for (const uint64_t id : {first, second}) {
    CHECK(stage.answers[id].finish == FinishReason::kError);
    REQUIRE(stage.answers[id].error);
    CHECK(stage.answers[id].error->message() == "card: is lost");
  }
  stage.run();
  CHECK(stage.answers[waiting].finish == FinishReason::kLength);
  CHECK(stage.answers[waiting].tokens.size() == 4);
}

TEST_CASE("an answer has the tokens the model says, and ends at max_tokens") {
  Stage stage;
  script(stage, "Once", " upon a time");
  const Answer a = stage.alone(request("Once", 12));
  CHECK(a.text == " upon a time");
  CHECK(a.finish == FinishReason::kLength);
  CHECK(a.tokens.size() == 12);
  CHECK(a.prompt_tokens == 4);
  CHECK(a.generated_tokens == 12);
  CHECK(a.events == 12);
}

TEST_CASE("a device that draws gives tokens alone, and logits of those who ask for more") {
  Stage stage({.draws = true});
  script(stage, "Once", " upon a time");
  GenerateRequest cold = request("Once", 12), warm = request("Once", 12), curious = cold;
  warm.sampling = {.temperature = 0.7, .top_k = 40, .top_p = 0.9, .min_p = 0.01, .seed = 5};
  curious.sampling.top_logprobs = 0;
  GenerateRequest repeating = cold;
  repeating.sampling.repetition_penalty = 1.1;
  for (const GenerateRequest& r : {cold, warm}) CHECK(stage.alone(r).text == " upon a time");
  CHECK(stage.record->logits_read == 0);
  REQUIRE(stage.record->draws.size() == 24);
  CHECK(stage.record->draws[0].temperature == 0);
  const TokenDraw third = stage.record->draws[12 + 2];
  CHECK(third.temperature == 0.7f);
  CHECK(third.top_k == 40);
  CHECK(third.top_p == 0.9f);
  CHECK(third.min_p == 0.01f);
  CHECK(third.uniform == Rng(5, 2).uniform());
  const std::vector<uint64_t> ids = {stage.ask(cold), stage.ask(curious), stage.ask(repeating)};
  stage.run();
  for (const uint64_t id : ids) CHECK(stage.answers[id].text == " upon a time");
  CHECK(stage.record->logits_read == 24);
  stage.record->poison = std::nanf("");
  const Answer poisoned = stage.alone(cold);
  REQUIRE(poisoned.error);
  CHECK(poisoned.error->what.find("not finite") != std::string::npos);
}

TEST_CASE("an end token ends the answer and is no text, unless told to go on") {
  Stage stage({.vocab = 300, .eos = {299, 10}});
  script(stage, "a", "bc");
  stage.record->script[{'a', 'b', 'c'}] = 299;
  const Answer a = stage.alone(request("a"));
  CHECK(a.text == "bc");
  CHECK(a.finish == FinishReason::kEos);
  CHECK(a.tokens == std::vector<int32_t>{'b', 'c', 299});
  GenerateRequest on = request("a");
  on.ignore_eos = true;
  const Answer b = stage.alone(on);
  CHECK(b.finish == FinishReason::kLength);
  CHECK(b.tokens.size() == 8);
}

TEST_CASE("a stop string ends the answer across tokens, and no part of it is said") {
  Stage stage;
  script(stage, "q", "yes <no> <END> never");
  GenerateRequest r = request("q", 20);
  r.stop = {"<END>", "xyz"};
  const uint64_t id = stage.ask(r);
  std::string said;
  while (stage.engine.has_work()) {
    stage.step();
    said = stage.answers[id].text;
    CHECK(std::string("yes <no> ").starts_with(said));
  }
  CHECK(said == "yes <no> ");
  CHECK(stage.answers[id].finish == FinishReason::kStop);
}

TEST_CASE("a half stop string at the end of an answer is text after all") {
  Stage stage;
  script(stage, "q", "so <EN");
  GenerateRequest r = request("q", 6);
  r.stop = {"<END>"};
  const Answer a = stage.alone(r);
  CHECK(a.text == "so <EN");
  CHECK(a.finish == FinishReason::kLength);
}

TEST_CASE("where a stop string cuts does not depend on the pieces the text comes in") {
  const std::string text = "aabaabcaabcaabd--";
  const std::vector<std::vector<std::string>> sets = {
      {"aabd"}, {"abca", "bc"}, {"aabcaabd", "caa"}, {"zz"}, {"-", "--"}};
  Rng rng(5);
  for (const auto& stops : sets) {
    StopMatcher whole(stops);
    std::string expected = whole.push(text);
    expected += whole.finish();
    for (int trial = 0; trial < 200; ++trial) {
      StopMatcher matcher(stops);
      std::string out;
      for (size_t at = 0; at < text.size();) {
        const size_t n = std::min(text.size() - at, 1 + rng.below(4));
        out += matcher.push(text.substr(at, n));
        at += n;
      }
      out += matcher.finish();
      CHECK(out == expected);
      CHECK(matcher.matched() == whole.matched());
    }
  }
}

TEST_CASE("an answer ends where the context does") {
  Stage stage({.positions = 20});
  const Answer a = stage.alone(request("0123456789", 100));
  CHECK(a.finish == FinishReason::kContext);
  CHECK(a.tokens.size() == 11);  // the last one needs no position
  CHECK(stage.engine.context_length() == 20);
  CHECK(stage.alone(request(std::string(20, 'x'), 100)).tokens.size() == 1);
}

TEST_CASE("a pool smaller than the model's context is the context") {
  Stage stage({.positions = 1000, .blocks = 3, .block_tokens = 4});
  CHECK(stage.engine.context_length() == 12);
  CHECK(stage.alone(request("abcd", 100)).tokens.size() == 9);
}

TEST_CASE("a request's tokens do not depend on who shares its steps") {
  constexpr int kSampled = 20, kAll = 30;
  const auto wish = [](int i) {
    GenerateRequest r =
        request(std::string(1 + static_cast<size_t>(i * 5 % 23), char('a' + i)), 5 + i % 9);
    r.sampling.temperature = i % 3 == 0 ? 0 : 0.9;
    r.sampling.top_k = i % 4 == 0 ? 0 : 20;
    r.sampling.repetition_penalty = 1.1;
    r.sampling.seed = static_cast<uint64_t>(i % 2);
    if (i >= kSampled) r.sampling = {.temperature = 0};  // a device that draws draws these
    return r;
  };
  std::vector<Answer> alone;
  for (int i = 0; i < kAll; ++i) alone.push_back(Stage().alone(wish(i)));
  struct Case {
    FakeShape shape;
    SchedulerLimits limits;
  };
  // Roomy; rows short; blocks so short that answers are preempted and computed again; so short, and
  // some room on the host for what gave way, or much.
  for (const Case& c :
       {Case{{.blocks = 400, .max_rows = 64}, {}},
        Case{{.blocks = 400, .max_rows = 8}, {.step_rows = 8, .prefill_chunk = 3}},
        Case{{.blocks = 18, .max_rows = 64}, {.prefill_chunk = 2}},
        Case{{.blocks = 18, .max_rows = 64, .host_places = 5}, {.prefill_chunk = 2}},
        Case{{.blocks = 18, .max_rows = 64, .host_places = 90}, {.prefill_chunk = 2}},
        Case{{.blocks = 400, .max_rows = 64, .draws = true}, {}},
        Case{{.blocks = 400, .max_rows = 64, .draws = true, .ahead = true}, {}},
        Case{{.blocks = 18, .max_rows = 64, .draws = true, .ahead = true}, {.prefill_chunk = 2}},
        Case{{.blocks = 18, .max_rows = 64, .draws = true}, {.prefill_chunk = 2}},
        Case{{.blocks = 18, .max_rows = 64, .draws = true, .host_places = 5},
             {.prefill_chunk = 2}}}) {
    Stage stage(c.shape, c.limits);
    Rng rng(9);
    std::map<int, uint64_t> ids;
    for (int i = 0; i < kAll; ++i) {
      ids[i] = stage.ask(wish(i));
      for (uint64_t n = rng.below(4); n > 0; --n) stage.step();
    }
    stage.run();
    for (int i = 0; i < kAll; ++i) {
      CHECK(stage.answers[ids[i]].tokens == alone[static_cast<size_t>(i)].tokens);
      CHECK(stage.answers[ids[i]].text == alone[static_cast<size_t>(i)].text);
    }
    CHECK(stage.record->most_segments > 2);
    CHECK(stage.engine.health().kv_blocks_free == c.shape.blocks);
    if (c.shape.blocks == 18) CHECK(stage.engine.health().preemptions > 0);
    CHECK((stage.engine.health().tokens_parked > 0) == (c.shape.host_places > 0));
  }
}

TEST_CASE("a second question about the same long text does not read it again") {
  Stage stage({.positions = 200, .blocks = 64});
  const std::string text(60, 'x');
  const Answer fresh = Stage({.positions = 200, .blocks = 64}).alone(request(text + "?second"));
  stage.alone(request(text + "?first"));
  const int64_t before = stage.record->rows;
  const Answer again = stage.alone(request(text + "?second"));
  CHECK(again.tokens == fresh.tokens);
  CHECK(stage.record->rows - before <= 7 + 4 + 8);
  CHECK(stage.engine.health().prompt_tokens_shared >= 56);
}

TEST_CASE("a cancelled request says so once and frees its blocks") {
  Stage stage;
  const uint64_t id = stage.ask(request("hello", 30));
  const uint64_t other = stage.ask(request("other", 30));
  stage.step();
  stage.step();
  stage.engine.cancel({id});
  stage.engine.cancel({id});
  stage.engine.cancel({77});
  stage.step();
  CHECK(stage.answers[id].finish == FinishReason::kCancelled);
  CHECK(stage.answers[id].generated_tokens == 2);
  stage.run();
  CHECK(stage.answers[other].finish == FinishReason::kLength);
  CHECK(stage.engine.health().kv_blocks_free == 16);
  CHECK(stage.engine.health().requests_finished == 2);
}

TEST_CASE("a deadline ends a request, running or waiting") {
  Stage stage({}, {.max_running = 1});
  GenerateRequest r = request("a", 50);
  r.timeout = Nanoseconds{100};
  const uint64_t running = stage.ask(r), waiting = stage.ask(r);
  r.timeout = Nanoseconds::max();
  const uint64_t patient = stage.ask(r);
  stage.step();
  CHECK(stage.answers[running].finish == FinishReason::kNone);
  stage.now = Nanoseconds{100};
  stage.step();
  CHECK(stage.answers[running].finish == FinishReason::kDeadline);
  CHECK(stage.answers[waiting].finish == FinishReason::kDeadline);
  CHECK(stage.answers[waiting].generated_tokens == 0);
  stage.run();
  CHECK(stage.answers[patient].finish == FinishReason::kLength);
}

TEST_CASE("logits that are not numbers end the request with an error, not the server") {
  Stage stage;
  stage.record->poison = std::nanf("");
  const Answer a = stage.alone(request("a"));
  CHECK(a.finish == FinishReason::kError);
  REQUIRE(a.error);
  CHECK(a.error->what.find("not finite") != std::string::npos);
  stage.record->poison = 0;
  CHECK(stage.alone(request("a")).finish == FinishReason::kLength);
}

TEST_CASE("a full queue turns requests away") {
  Stage stage({}, {.max_waiting = 2});
  stage.ask(request("a"));
  stage.ask(request("b"));
  const Status third = stage.engine.submit({99}, stage.engine.check(request("c")).value(), {});
  REQUIRE_FALSE(third.ok());
  CHECK(third.error().code == ErrorCode::kResourceExhausted);
  stage.run();
  CHECK(stage.answers.size() == 2);
}

TEST_CASE("what cannot be answered is refused by the name of its field") {
  Stage stage;
  const auto refused = [&](auto change) {
    GenerateRequest r = request("abc");
    change(r);
    return where(stage.engine.check(r));
  };
  CHECK(refused([](auto&) {}) == "accepted");
  CHECK(refused([](auto& r) { r.prompt = ""; }) == "prompt");
  CHECK(refused([](auto& r) { r.prompt = std::string(65, 'x'); }) == "prompt");
  CHECK(refused([](auto& r) { r.prompt_tokens = {1}; }) == "prompt");
  CHECK(refused([](auto& r) {
          r.prompt = "";
          r.prompt_tokens = {1, 256};
        }) == "prompt");
  CHECK(refused([](auto& r) {
          r.prompt = "";
          r.prompt_tokens = {-1};
        }) == "prompt");
  CHECK(refused([](auto& r) { r.max_tokens = 0; }) == "max_tokens");
  CHECK(refused([](auto& r) { r.stop = {""}; }) == "stop");
  CHECK(refused([](auto& r) { r.stop.assign(17, "x"); }) == "stop");
  CHECK(refused([](auto& r) { r.sampling.top_p = 2; }) == "top_p");
}

TEST_CASE("each event of a step is of another request, and a finished one speaks no more") {
  Stage stage;
  for (int i = 0; i < 6; ++i) stage.ask(request("p", 3 + i));
  while (stage.engine.has_work()) {
    std::vector<uint64_t> seen;
    for (const GenerateEvent& e : stage.engine.step(stage.now)) seen.push_back(e.request.value);
    std::sort(seen.begin(), seen.end());
    CHECK(std::adjacent_find(seen.begin(), seen.end()) == seen.end());
  }
  CHECK(stage.engine.health().requests_finished == 6);
}
