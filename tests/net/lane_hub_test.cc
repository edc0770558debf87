// Whom a hub tells what of its lanes.
#include "net/lane_hub.h"

#include <doctest/doctest.h>

#include <optional>
#include <thread>

#include "lane_fixture.h"

using namespace fastserve;

namespace {

std::pair<std::unique_ptr<Stream>, std::unique_ptr<Stream>> stream_pair() {
  SocketPair pair;
  return {plain_stream(std::move(pair.a), "one"), plain_stream(std::move(pair.b), "other")};
}

struct LossKeeper final : BulkSink {
  Result<BulkPlace> place(const std::string&, const BulkTag&, uint64_t) override {
    return Error{ErrorCode::kInvalidArgument, "nobody asked for it", "", ""};
  }
  void arrived(const std::string&, const BulkTag&, BulkPlace) override {}
  void lost(const std::string& peer, const Error& why) override {
    std::lock_guard lock(mutex);
    losses.push_back(peer + " " + why.what);
  }
  std::mutex mutex;
  std::vector<std::string> losses;
};

}  // namespace

TEST_CASE("a lane that a peer's new connection replaces is told of as lost, once") {
  auto [here, there] = stream_pair();
  auto [here_again, there_again] = stream_pair();
  LaneHub hub;
  const auto sink = std::make_shared<LossKeeper>();
  hub.open(7, sink);
  REQUIRE(hub.adopt("node", std::move(here)).ok());
  CHECK(sink->losses.empty());
  REQUIRE(hub.adopt("node", std::move(here_again)).ok());
  CHECK(hub.connected("node"));
  hub.close(7, *sink);  // after which no sink is called any more
  CHECK(sink->losses == std::vector<std::string>{"node has connected anew"});
}

TEST_CASE("a part that ends late does not take the place of the one that follows it") {
  auto [here, there] = stream_pair();
  LaneHub hub;
  const auto before = std::make_shared<LossKeeper>(), after = std::make_shared<LossKeeper>();
  hub.open(7, before);
  hub.open(7, after);
  hub.close(7, *before);
  REQUIRE(hub.adopt("node", std::move(here)).ok());
  hub.drop("node");
  CHECK(before->losses.empty());
  CHECK(after->losses == std::vector<std::string>{"node was cut off"});
}

TEST_CASE(
    "a hub that has ended cuts its lanes, lets go of its sinks, and refuses what comes later") {
  auto [here, there] = stream_pair();
  auto [late, other] = stream_pair();
  LaneHub hub;
  auto sink = std::make_shared<LossKeeper>();
  const std::weak_ptr kept = sink;
  hub.open(7, sink);
  REQUIRE(hub.adopt("node", std::move(here)).ok());
  std::optional<Status> waited;
  std::thread waiting([&] { waited = hub.wait_for({"another"}, std::chrono::minutes(1)); });
  hub.end();
  waiting.join();
  CHECK(waited->error().code == ErrorCode::kCancelled);
  CHECK_FALSE(hub.connected("node"));
  hub.open(8, sink);
  hub.close(7, *sink);
  sink = nullptr;
  CHECK(kept.expired());
  CHECK(hub.adopt("node", std::move(late)).error().code == ErrorCode::kCancelled);
  hub.send("node", {1, 7, 0, 0}, {}, 0);
}
