// Requests that give way and come back without being computed again.
#include "serve/kv_parking.h"

#include <doctest/doctest.h>

#include <map>

#include "serve/engine.h"
#include "tests/serve/fake_model.h"

using namespace fastserve;

namespace {

/// Three answers that outgrow the pool together.
struct Crowd {
  explicit Crowd(int host_places)
      : engine(std::make_unique<FakeDecoder>(
                   FakeShape{.positions = 64, .blocks = 20, .host_places = host_places}, record),
               std::make_shared<ByteTokenizer>(), {}) {
    for (uint64_t i = 1; i <= 3; ++i) {
      GenerateRequest request;
      request.prompt = std::string(12, static_cast<char>('a' + i));
      request.max_tokens = 30;
      request.sampling.temperature = 0;
      REQUIRE(engine.submit({i}, engine.check(request).value(), Nanoseconds{0}).ok());
    }
  }
  /// Every event until nothing is left to do.
  std::vector<GenerateEvent> run() {
    std::vector<GenerateEvent> all;
    for (int i = 0; i < 1000 && engine.has_work(); ++i)
      for (GenerateEvent& e : engine.step(Nanoseconds{0})) all.push_back(std::move(e));
    REQUIRE_FALSE(engine.has_work());
    return all;
  }
  std::shared_ptr<FakeRecord> record = std::make_shared<FakeRecord>();
  Engine engine;
};

std::map<uint64_t, std::vector<int32_t>> tokens_of(const std::vector<GenerateEvent>& events) {
  std::map<uint64_t, std::vector<int32_t>> tokens;
  for (const GenerateEvent& e : events)
    for (const GeneratedToken& t : e.tokens) tokens[e.request.value].push_back(t.token);
  return tokens;
}

}  // namespace

TEST_CASE("a request that gave way goes on where it was, and computes no token twice") {
  Crowd without(0), with(30);
  CHECK(tokens_of(without.run()) == tokens_of(with.run()));
  CHECK(without.engine.health().preemptions > 0);
  CHECK(with.engine.health().preemptions > 0);
  CHECK(with.engine.health().tokens_parked > 0);
  CHECK(with.record->rows == 3 * (12 + 30 - 1));
  CHECK(without.record->rows > with.record->rows);
}

TEST_CASE("blocks that cannot be moved end every request, since nobody knows whose came through") {
  Crowd crowd(30);
  crowd.record->move_failure = Error{ErrorCode::kUnavailable, "is lost", "card", ""};
  int failed = 0;
  for (const GenerateEvent& e : crowd.run())
    if (e.finish == FinishReason::kError) {
      ++failed;
      REQUIRE(e.error);
      CHECK(e.error->message() == "card: is lost");
    }
  CHECK(failed >= 2);
  CHECK(crowd.engine.health().kv_blocks_free == 20);
}

TEST_CASE("places are handed out while there are enough, and moves are told in order, once") {
  KvParking parking(3);
  std::vector<int32_t> first, second;
  CHECK(parking.park(std::vector<int32_t>{7, 8}, first));
  CHECK(first == std::vector<int32_t>{0, 1});
  CHECK_FALSE(parking.park(std::vector<int32_t>{9, 10}, second));
  CHECK_FALSE(parking.park({}, second));
  CHECK(second.empty());
  CHECK(parking.free() == 1);
  parking.fetch(first, std::vector<int32_t>{4, 5});
  parking.release(first);
  CHECK(parking.park(std::vector<int32_t>{9, 10}, second));
  CHECK(second == std::vector<int32_t>{0, 1});
  const std::vector<BlockMove> moves = parking.take_moves();
  REQUIRE(moves.size() == 6);
  CHECK((moves[0].out && moves[0].block == 7 && moves[0].place == 0));
  CHECK((!moves[3].out && moves[3].block == 5 && moves[3].place == 1));
  CHECK((moves[5].out && moves[5].block == 10 && moves[5].place == 1));
  CHECK(parking.take_moves().empty());
}
