// Requests that come while a model's weights are on their way.
#include "tests/serve/engine_stage.h"

using namespace fastserve;

TEST_CASE("requests that come while weights are on their way are answered as later ones are") {
  GenerateRequest request;
  request.prompt_tokens = {5, 6, 7};
  request.max_tokens = 4;
  Stage there;
  const Answer expected = there.alone(request);
  for (const bool beside : {false, true}) {
    CAPTURE(beside);
    Stage stage({.parts = 5, .beside = beside});
    CHECK(stage.engine.loading());
    stage.step();
    stage.step();
    CHECK(stage.record->parts_taken == 2);  // nobody has asked: a part at a time
    CHECK_FALSE(stage.engine.has_work());
    const uint64_t id = stage.ask(request);
    stage.step();
    CHECK(stage.record->parts_taken == (beside ? 5 : 3));
    CHECK(stage.record->steps == (beside ? 1 : 0));
    stage.run();
    CHECK_FALSE(stage.engine.loading());
    CHECK(stage.answers[id].tokens == expected.tokens);
  }
}

TEST_CASE("when weights cannot be loaded, who waits for them and who comes later are told why") {
  for (const bool beside : {false, true}) {
    CAPTURE(beside);
    Stage stage({.parts = 3, .beside = beside});
    stage.record->load_failure = Error{ErrorCode::kCorrupt, "is damaged", "layer 2", ""};
    GenerateRequest request;
    request.prompt_tokens = {5, 6, 7};
    const uint64_t id = stage.ask(request);
    stage.run();
    CHECK(stage.answers[id].tokens.empty());
    CHECK(stage.answers[id].finish == FinishReason::kError);
    REQUIRE(stage.answers[id].error.has_value());
    CHECK(stage.answers[id].error->code == ErrorCode::kCorrupt);
    CHECK_FALSE(stage.engine.loading());
    REQUIRE(stage.engine.load_failure().has_value());
    const Status later =
        stage.engine.submit({9}, stage.engine.check(request).value(), Nanoseconds{0});
    REQUIRE_FALSE(later.ok());
    CHECK(later.error().code == ErrorCode::kCorrupt);
  }
}

TEST_CASE("a load that is stopped ends its requests as cancelled") {
  Stage stage({.parts = 1, .beside = true});
  stage.record->load_failure = Error{ErrorCode::kCancelled, "stopped", "", ""};
  GenerateRequest request;
  request.prompt_tokens = {5};
  const uint64_t id = stage.ask(request);
  stage.run();
  CHECK(stage.answers[id].finish == FinishReason::kCancelled);
}
