// Engines that share a device's memory in turns, over the fake decoder.
#include <doctest/doctest.h>

#include <map>

#include "serve/engine_group.h"
#include "tests/serve/engine_stage.h"

using namespace fastserve;
using namespace std::chrono_literals;

namespace {

/// Models of which `fit` fit at a time, and what became of requests to them.
struct House {
  struct Model {
    std::shared_ptr<FakeRecord> record = std::make_shared<FakeRecord>();
    std::optional<Error> make_failure;
    int made = 0;
  };
  std::vector<std::shared_ptr<Model>> models;
  std::vector<EngineGroup::Turn> turns;  ///< that are over
  std::map<uint64_t, Answer> answers;
  std::optional<EngineGroup> group;
  uint64_t next = 1;
  Nanoseconds now{0};

  explicit House(size_t count, FakeShape shape = {.parts = 3}, SchedulerLimits limits = {},
                 uint64_t fit = 1) {
    std::vector<std::unique_ptr<Engine>> engines;
    const FakeDecoder like(shape, std::make_shared<FakeRecord>());
    for (size_t i = 0; i < count; ++i) {
      models.push_back(std::make_shared<Model>());
      const auto make = [model = models.back(), shape]() -> Result<std::unique_ptr<Decoder>> {
        if (model->make_failure) return *model->make_failure;
        ++model->made;
        model->record->parts_taken = 0;
        return std::unique_ptr<Decoder>(std::make_unique<FakeDecoder>(shape, model->record));
      };
      engines.push_back(std::make_unique<Engine>(like.config(), like.options(), make,
                                                 std::make_shared<ByteTokenizer>(), limits));
    }
    ModelTurns order(std::vector<ModelTurns::Need>(count, {10, 1}), 10 * fit + 1, 1s);
    for (const size_t i : order.begin()) REQUIRE(engines[i]->come().ok());
    const auto told = [this](const EngineGroup::Turn& turn) {
      if (turn.over) turns.push_back(turn);
    };
    group.emplace(std::move(engines), std::function<void(size_t)>(),
                  EngineGroup::Turns{std::move(order), [] { return uint64_t{1000}; }, told});
    while (group->loading()) step();
  }
  uint64_t ask(size_t model, GenerateRequest request) {
    const uint64_t id = next++;
    const auto sink = [this](std::vector<GenerateEvent> events) {
      for (GenerateEvent& e : events) {
        Answer& a = answers[e.request.value];
        CHECK(a.finish == FinishReason::kNone);
        for (const GeneratedToken& t : e.tokens) a.tokens.push_back(t.token);
        a.finish = e.finish;
        a.error = e.error;
      }
    };
    group->submit(model, {id}, group->engine(model).check(std::move(request)).value(), sink, now);
    return id;
  }
  void step(Nanoseconds later = 1ms) {
    group->step(now);
    now += later;
  }
  void run() {
    for (int i = 0; i < 5000 && (group->has_work() || group->loading()); ++i) step();
    REQUIRE_FALSE(group->has_work());
    REQUIRE_FALSE(group->loading());
  }
  bool here(size_t model) const { return group->engine(model).here(); }
};

GenerateRequest request_of(std::vector<int32_t> prompt, int tokens = 4) {
  GenerateRequest request;
  request.prompt_tokens = std::move(prompt);
  request.max_tokens = tokens;
  request.ignore_eos = true;
  return request;
}

}  // namespace

TEST_CASE("models that take turns answer as one that has the device for itself") {
  for (const bool beside : {false, true}) {
    CAPTURE(beside);
    House house(3, {.parts = 3, .beside = beside});
    CHECK(house.here(0));
    CHECK_FALSE(house.here(1));
    CHECK(house.group->health().kv_blocks == 16);
    for (int32_t i = 0; i < 12; ++i) {
      const GenerateRequest request = request_of({7, 8, 9, 1, 2, 3, i % 2});  // of two blocks
      const uint64_t id = house.ask(static_cast<size_t>(i) % 3, request);
      house.run();
      CHECK(house.answers[id].finish == FinishReason::kLength);
      CHECK(house.answers[id].tokens == Stage().alone(request).tokens);
      CHECK(house.here(static_cast<size_t>(i) % 3));
    }
    CHECK(house.turns.size() == 11);
    CHECK(house.models[0]->made == 4);
    CHECK(house.group->health().kv_blocks == 16);
    CHECK(house.group->health().kv_blocks_free == 16);
  }
}

TEST_CASE("requests to all models at once are all answered, though one model is always asked") {
  House house(3);
  std::vector<uint64_t> ids, busy;
  for (size_t model : {1u, 2u}) ids.push_back(house.ask(model, request_of({1, 2, 3})));
  const auto answered = [&] {
    return std::all_of(ids.begin(), ids.end(), [&](uint64_t id) {
      return house.answers[id].finish != FinishReason::kNone;
    });
  };
  for (int i = 0; i < 300 && !answered(); ++i) {
    if (i % 2 == 0) busy.push_back(house.ask(0, request_of({4, 5}, 6)));
    house.step(100ms);
  }
  CHECK(answered());
  house.run();
  for (const uint64_t id : busy) CHECK(house.answers[id].finish == FinishReason::kLength);
}

TEST_CASE("a model that has had its turn finishes what it began, and begins the rest later") {
  House house(2, {.positions = 256, .blocks = 64});
  const uint64_t long_one = house.ask(0, request_of({1, 2}, 40));
  house.step();
  const uint64_t waiting = house.ask(1, request_of({3}));
  house.step(2s);
  const uint64_t late = house.ask(0, request_of({4, 5}));
  while (house.answers[long_one].finish == FinishReason::kNone) {
    CHECK(house.answers[late].tokens.empty());
    CHECK_FALSE(house.here(1));
    house.step();
  }
  CHECK(house.answers[long_one].tokens.size() == 40);
  while (house.answers[waiting].finish == FinishReason::kNone) house.step();
  CHECK(house.answers[late].tokens.empty());
  house.run();
  CHECK(house.answers[late].finish == FinishReason::kLength);
  CHECK(house.turns.size() == 2);
}

TEST_CASE("who gave way for want of blocks is answered before its model leaves") {
  House house(2, {.positions = 24, .blocks = 6, .host_places = 6}, {.max_running = 2});
  const GenerateRequest one = request_of({1, 2, 3, 4, 5, 6, 7}, 12),
                        two = request_of({9, 2, 3, 4, 5, 6}, 12);
  const uint64_t first = house.ask(0, one), second = house.ask(0, two);
  while (house.group->health().preemptions == 0) house.step();
  const uint64_t other = house.ask(1, request_of({3}));
  house.step(2s);
  house.run();
  CHECK(house.answers[first].tokens == Stage().alone(one).tokens);
  CHECK(house.answers[second].tokens == Stage().alone(two).tokens);
  CHECK(house.answers[other].finish == FinishReason::kLength);
  CHECK(house.turns.size() == 1);  // it was there until both had ended
}

TEST_CASE("a model that cannot come ends who waits for it, and comes when it can") {
  const Error failure{ErrorCode::kResourceExhausted, "no memory", "the device", "free some"};
  for (const bool begins : {false, true}) {
    for (const bool beside : {false, true}) {
      CAPTURE(begins);
      CAPTURE(beside);
      House house(2, {.parts = 3, .beside = beside});
      (begins ? house.models[1]->record->load_failure : house.models[1]->make_failure) = failure;
      const uint64_t lost = house.ask(1, request_of({1})), too = house.ask(1, request_of({2}));
      house.run();
      for (const uint64_t id : {lost, too}) {
        CHECK(house.answers[id].finish == FinishReason::kError);
        CHECK(house.answers[id].tokens.empty());
        REQUIRE(house.answers[id].error);
        CHECK(house.answers[id].error->what == "no memory");
      }
      CHECK_FALSE(house.here(1));
      REQUIRE(house.turns.size() == 1);
      CHECK(house.turns[0].failure.has_value());
      CHECK_FALSE(house.group->load_failure().has_value());
      const uint64_t other = house.ask(0, request_of({1}));
      house.run();
      CHECK(house.answers[other].finish == FinishReason::kLength);
      house.models[1]->record->load_failure.reset();
      house.models[1]->make_failure.reset();
      const uint64_t again = house.ask(1, request_of({1}));
      house.run();
      CHECK(house.answers[again].finish == FinishReason::kLength);
      CHECK(house.answers[again].tokens == house.answers[other].tokens);
    }
  }
}

TEST_CASE("other models answer while one is on its way") {
  House house(3, {.parts = 8}, {}, 2);
  const uint64_t comes = house.ask(2, request_of({1, 2, 3}, 30)),
                 stays = house.ask(1, request_of({1, 2, 3}, 30));
  for (int i = 0; i < 6; ++i) house.step();
  CHECK(house.models[2]->record->parts_taken == 6);
  CHECK(house.answers[stays].tokens.size() == 6);
  CHECK(house.answers[comes].tokens.empty());
  house.run();
  CHECK(house.answers[comes].tokens == house.answers[stays].tokens);
  CHECK(house.turns.front().left == std::vector<size_t>{0});
}

TEST_CASE("a request that is cancelled while its model comes leaves the model there") {
  House house(2);
  const uint64_t id = house.ask(1, request_of({1}));
  house.step();
  CHECK(house.group->loading());
  house.group->cancel({id});
  house.run();
  CHECK(house.answers[id].finish == FinishReason::kCancelled);
  CHECK(house.here(1));
  CHECK_FALSE(house.here(0));
  const uint64_t back = house.ask(0, request_of({1}));
  house.run();
  CHECK(house.answers[back].finish == FinishReason::kLength);
}

TEST_CASE("a server that is stopped in the middle of a turn ends all requests as cancelled") {
  House house(2);
  const uint64_t first = house.ask(1, request_of({1}));
  house.step();
  const uint64_t second = house.ask(0, request_of({1}));
  house.models[1]->record->load_failure = Error{ErrorCode::kCancelled, "stopped", "", ""};
  house.group->cancel_all();
  house.run();
  for (const uint64_t id : {first, second})
    CHECK(house.answers[id].finish == FinishReason::kCancelled);
  CHECK_FALSE(house.here(1));
}

TEST_CASE("a deadline passes for those that wait for a turn, too, and nobody leaves for them") {
  House house(2, {.positions = 256, .blocks = 64});
  const uint64_t busy = house.ask(0, request_of({1, 2}, 60));
  GenerateRequest request = request_of({3});
  request.timeout = 10ms;
  const uint64_t late = house.ask(1, request);
  for (int i = 0; i < 20; ++i) house.step();
  CHECK(house.answers[late].finish == FinishReason::kDeadline);
  house.run();
  CHECK(house.answers[busy].finish == FinishReason::kLength);
  CHECK(house.turns.empty());
  CHECK(house.here(0));
}
