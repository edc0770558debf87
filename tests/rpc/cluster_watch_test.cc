// Watches: several clients, slow ones, and ones that vanish.
#include <algorithm>
#include <future>

#include "cluster_fixture.h"

namespace fastserve {
namespace {

using namespace fastserve::testing;

ClusterServerOptions fast() {
  ClusterServerOptions options;
  options.most_updates_per_second = 1000;
  return options;
}

TEST_CASE("two clients watch one job from its first step to its last") {
  ServedCluster served(fast());
  served.control.put(some_job("j1"));
  std::atomic<int> ready{0};
  const auto follow = [&] {
    std::vector<int64_t> steps;
    std::string state;
    const Status ended =
        served.connect("read")->watch({"j1", false, 1000}, [&](const ClusterUpdate& update) {
          REQUIRE(update.jobs.size() == 1);
          CHECK(update.nodes.empty());
          if (steps.empty()) ready++;
          steps.push_back(update.jobs.front().step);
          state = update.jobs.front().state;
          CHECK(update.last == (state == "finished"));
          return true;
        });
    REQUIRE(ended.ok());
    CHECK(state == "finished");
    CHECK(std::is_sorted(steps.begin(), steps.end()));
    CHECK(steps.front() == 10);
    return steps.back();
  };
  auto first = std::async(std::launch::async, follow),
       second = std::async(std::launch::async, follow);
  while (ready < 2) std::this_thread::yield();
  served.control.step("j1", 50);
  served.control.step("j1", 100, "finished");
  CHECK(first.get() == 100);
  CHECK(second.get() == 100);
}

TEST_CASE("a watch of everything shows nodes, and jobs that have not ended") {
  ServedCluster served(fast());
  served.control.put(some_job("j1"));
  ClusterJob done = some_job("j0");
  done.state = "failed";
  served.control.put(done);
  bool seen = false;
  const Status ended =
      served.connect("read")->watch({"", true, 1000}, [&](const ClusterUpdate& update) {
        REQUIRE(update.jobs.size() == 1);
        CHECK(update.jobs.front().id == "j1");
        CHECK(update.jobs.front().details == some_job("j1").details);
        REQUIRE(update.nodes.size() == 2);
        CHECK(update.nodes.front().name == "n1");
        CHECK_FALSE(update.last);
        seen = true;
        return false;
      });
  CHECK(ended.ok());
  CHECK(seen);
}

TEST_CASE("nothing is asked and nothing gathers for a client that does not read on") {
  ServedCluster served(fast());
  served.control.put(some_job("j1"));
  std::vector<int64_t> steps;
  size_t looks_before = 0, looks_after = 0;
  const Status ended =
      served.connect("read")->watch({"j1", false, 1000}, [&](const ClusterUpdate& update) {
        steps.push_back(update.jobs.front().step);
        if (steps.size() == 1) {
          looks_before = served.control.looks();
          // While this client stands still, another one sees a hundred steps.
          int64_t step = 10;
          CHECK(served.connect("read")
                    ->watch({"j1", false, 1000},
                            [&](const ClusterUpdate& other) {
                              if (other.jobs.front().step >= 16) return false;
                              served.control.step("j1", ++step);
                              return true;
                            })
                    .ok());
          looks_after = served.control.looks();
          served.control.step("j1", 100, "finished");
        }
        return true;
      });
  CHECK(ended.ok());
  CHECK(steps == std::vector<int64_t>{10, 100});
  CHECK(looks_after - looks_before <= 9);  // the other's alone: its updates, and its own beginning
}

TEST_CASE("an update that says nothing new is not sent before its time") {
  ClusterServerOptions options = fast();
  options.repeat = std::chrono::hours(1);
  ServedCluster served(options);
  served.control.put(some_job("j1"));
  const auto client = served.connect("read");
  size_t updates = 0;
  std::thread changer([&] {
    while (served.control.looks() < 20) std::this_thread::yield();
    served.control.step("j1", 100, "finished");
  });
  CHECK(
      client->watch({"j1", false, 1000}, [&](const ClusterUpdate&) { return ++updates > 0; }).ok());
  changer.join();
  CHECK(updates == 2);
}

TEST_CASE("a quiet watch is told so, and outlives the timeout of calls") {
  ClusterServerOptions options = fast();
  options.repeat = std::chrono::milliseconds(20);
  ServedCluster served(options);
  served.control.put(some_job("j1"));
  size_t updates = 0;
  CHECK(served.connect("read")
            ->watch({"j1", false, 1000}, [&](const ClusterUpdate&) { return ++updates < 5; })
            .ok());
  CHECK(updates == 5);
}

TEST_CASE("a client that vanishes in the middle of a watch is asked for no more") {
  ServedCluster served(fast());
  served.control.put(some_job("j1"));
  auto client = served.connect("read");
  CHECK(client->watch({"j1", false, 1000}, [](const ClusterUpdate&) { return false; }).ok());
  client.reset();
  served.wait_for_connections(0);
  const size_t looks = served.control.looks();
  // Were it still watched, another's watch of ten updates would see its questions, too.
  size_t updates = 0;
  served.control.put(some_job("j2"));
  CHECK(served.connect("read")
            ->watch({"j2", false, 1000},
                    [&](const ClusterUpdate&) {
                      served.control.step("j2", static_cast<int64_t>(20 + updates));
                      return ++updates < 5;
                    })
            .ok());
  CHECK(served.control.looks() - looks <= 7);
}

TEST_CASE("a watch of a job that is not there says so") {
  const ServedCluster served(fast());
  const Status ended = served.connect("read")->watch({"j9", false, 1000}, [](const ClusterUpdate&) {
    FAIL("no update expected");
    return true;
  });
  CHECK(ended.error().code == ErrorCode::kNotFound);
}

TEST_CASE("a coordinator that goes away ends its watches") {
  ServedCluster served(fast());
  served.control.put(some_job("j1"));
  const auto client = served.connect("read");
  std::thread closer;
  const Status ended = client->watch({"j1", false, 1000}, [&](const ClusterUpdate&) {
    if (!closer.joinable()) closer = std::thread([&] { served.server.reset(); });
    return true;
  });
  closer.join();
  CHECK(ended.error().code == ErrorCode::kUnavailable);
  CHECK(client->nodes().error().code == ErrorCode::kUnavailable);
}

TEST_CASE("what a callback throws comes out of the watch, and the connection lives on") {
  ServedCluster served(fast());
  served.control.put(some_job("j1"));
  const auto client = served.connect("read");
  const auto watch = [&] {
    return client->watch({"j1", false, 1000}, [](const ClusterUpdate&) -> bool { throw 7; });
  };
  CHECK_THROWS_AS((void)watch(), int);
  CHECK(client->nodes().ok());
  CHECK_THROWS_AS((void)watch(), int);
}

TEST_CASE("Ctrl-C ends a watch at once") {
  ServedCluster served(fast());
  served.control.put(some_job("j1"));
  CancelFlag cancel;
  ClusterClientOptions options;
  options.cancel = &cancel;
  auto client = served.try_connect("read", options);
  REQUIRE(client.ok());
  const Status ended = (*client)->watch({"j1", false, 1000}, [&](const ClusterUpdate&) {
    cancel.raise();
    return true;
  });
  CHECK(ended.error().code == ErrorCode::kCancelled);
}

}  // namespace
}  // namespace fastserve
