// Deployments of models that take turns in the memory of the CPU device.
#include <algorithm>

#include "tests/actors_serve/turning.h"
#include "tests/thread_count.h"

using namespace fastserve;

namespace {

const std::vector<std::string> kNames = {"llama3-tiny", "qwen3-tiny"};

/// Two models of which one fits; the second one's tensors are watched.
struct Two {
  std::shared_ptr<WatchedTensors> second =
      std::make_shared<WatchedTensors>(turn_bundle(kNames[1]).tensors);
  std::vector<std::string> lines;
  Turning turning;

  Two() {
    turning.models = {{kNames[0], turn_bundle(kNames[0])},
                      {kNames[1], {turn_bundle(kNames[1]).documents, second}}};
    turning.memory = memory_for_one([&](uint64_t bytes) {
      Turning probe = turning;
      probe.models[1].second = turn_bundle(kNames[1]);
      probe.memory = bytes;
      return probe.open().ok();
    });
    turning.lines = &lines;
  }
};

}  // namespace

TEST_CASE("models that do not fit together answer in turns as each does alone") {
  const auto before = thread_ids();
  {
    Two two;
    auto system = two.turning.start();
    CHECK(system->health().ready);
    CHECK(system->models().at(0).on_device);
    CHECK_FALSE(system->models().at(1).on_device);
    CHECK(system->models().at(1).weight_bytes == 0);
    CHECK(system->models().at(1).context_length == 128);
    check_alternating(*system, kNames, {}, 20);
    CHECK(ask(*system, kNames[1]).tokens.size() == 6);
    CHECK(system->models().at(1).on_device);
    CHECK(system->models().at(1).weight_bytes > 0);
    CHECK_FALSE(system->models().at(0).on_device);
    CHECK(system->health().ready);
    system->stop(ServingSystem::Stop::kDrain);
    CHECK(system->health().kv_blocks > 0);
    CHECK(system->health().kv_blocks_free == system->health().kv_blocks);
    const auto told = [&](const std::string& text) {
      return std::count_if(two.lines.begin(), two.lines.end(), [&](const std::string& line) {
        return line.find(text) != std::string::npos;
      });
    };
    CHECK(told("qwen3-tiny@1 waits on the host for its first request") == 1);
    CHECK(told("llama3-tiny@1 came into the device's memory in ") > 0);
    CHECK(told(", in place of qwen3-tiny@1: weights ") ==
          told("llama3-tiny@1 came into the device's memory in "));
  }
  CHECK(threads_left_since(before) == 0);
}

TEST_CASE("of a model that waits nothing is read, but what does not fit together is found") {
  Two two;
  auto system = two.turning.start();
  CHECK(two.second->read() == 0);
  CHECK(ask(*system, kNames[1]).tokens.size() == 6);
  CHECK(two.second->read() > 0);
  system.reset();
  two.turning.models[1].second = {turn_bundle("llama3-tiny").documents, two.second};
  const auto refused = two.turning.open();
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kCorrupt);
}

TEST_CASE("a model whose bytes are damaged ends its requests alone, and is tried again") {
  Two two;
  const auto system = two.turning.start();
  two.second->damage(Error{ErrorCode::kCorrupt, "the checksum differs", "q@1", "import it again"});
  for (int i = 0; i < 2; ++i) {
    const Answer lost = ask(*system, kNames[1]);
    CHECK(lost.finish == FinishReason::kError);
    CHECK(lost.ends == 1);
    REQUIRE(lost.error);
    CHECK(lost.error->code == ErrorCode::kCorrupt);
    CHECK(system->health().ready);
    CHECK(ask(*system, kNames[0]).finish == FinishReason::kLength);
  }
  two.second->damage({});
  CHECK(ask(*system, kNames[1]).finish == FinishReason::kLength);
  system->stop(ServingSystem::Stop::kDrain);
  CHECK(std::any_of(two.lines.begin(), two.lines.end(), [](const std::string& line) {
    return line.find(
               "qwen3-tiny@1 could not come into the device's memory, in place of "
               "llama3-tiny@1: q@1: the checksum differs") != std::string::npos;
  }));
}

TEST_CASE("a server that is stopped while a model comes ends the requests for it") {
  Two two;
  const auto system = two.turning.start();
  two.second->hold(true);
  Listener waits, other;
  REQUIRE(system->submit(turn_request(kNames[1]), waits.sink()).ok());
  two.second->wait_until_read();
  REQUIRE(system->submit(turn_request(kNames[0]), other.sink()).ok());
  std::thread stopper([&] { system->stop(ServingSystem::Stop::kCancel); });
  while (system->health().ready) std::this_thread::yield();
  two.second->hold(false);
  stopper.join();
  CHECK(waits.wait().finish == FinishReason::kCancelled);
  CHECK(other.wait().finish == FinishReason::kCancelled);
}

TEST_CASE("draining a server answers requests whose models have yet to come") {
  Two two;
  const auto system = two.turning.start();
  std::vector<std::unique_ptr<Listener>> listeners;
  for (size_t i = 0; i < 6; ++i) {
    listeners.push_back(std::make_unique<Listener>());
    REQUIRE(system->submit(turn_request(kNames[i % 2]), listeners.back()->sink()).ok());
  }
  system->stop(ServingSystem::Stop::kDrain);
  for (const auto& listener : listeners) CHECK(listener->wait().finish == FinishReason::kLength);
}

TEST_CASE("models that do not fit are refused: together without turns, and one by itself with") {
  Two two;
  two.turning.turns = false;
  const auto together = two.turning.open();
  REQUIRE_FALSE(together.ok());
  CHECK(together.error().code == ErrorCode::kResourceExhausted);
  CHECK(together.error().hint.find("--turns") != std::string::npos);
  two.turning.turns = true;
  two.turning.memory -= 1 << 17;
  const auto alone = two.turning.open();
  REQUIRE_FALSE(alone.ok());
  CHECK(alone.error().code == ErrorCode::kResourceExhausted);
  CHECK(alone.error().what.find("@1 by itself needs ") != std::string::npos);
  two.turning.turns = false;
  const auto hopeless = two.turning.open();
  REQUIRE_FALSE(hopeless.ok());
  CHECK(hopeless.error().hint.find("--turns") == std::string::npos);
}

TEST_CASE("models that fit together are all there, with turns as without") {
  Two two;
  two.turning.memory = 0;
  const auto system = two.turning.start();
  for (const ServedModel& model : system->models()) CHECK(model.on_device);
  for (const std::string& name : kNames) CHECK(ask(*system, name).tokens.size() == 6);
  system->stop(ServingSystem::Stop::kDrain);
  for (const std::string& line : two.lines)
    CHECK(line.find("came into the device's memory") == std::string::npos);
}
