// Questions to actors of other nodes, and what ends them.
#include "actors/asked_peer.h"

#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "tests/actors/remoting_fixture.h"

using namespace fastserve;
using namespace std::chrono_literals;

namespace {

/// Counts what it is sent. (A mailbox that a test looks into is CAF's code compiled anew, which the
/// sanitizers report.)
class CountingAsker final : public caf::monitorable_actor {
 public:
  explicit CountingAsker(caf::actor_config& config) : monitorable_actor(config) {}
  void enqueue(caf::mailbox_element_ptr, caf::execution_unit*) override { ++messages; }
  std::atomic<int> messages{0};
};

struct Asker {
  explicit Asker(caf::actor_system& system) {
    caf::actor_config config;
    handle = caf::make_actor<CountingAsker, caf::strong_actor_ptr>(system.next_actor_id(),
                                                                   system.node(), &system, config);
  }
  ~Asker() { actor().cleanup(caf::exit_reason::normal, nullptr); }
  CountingAsker& actor() const { return static_cast<CountingAsker&>(*handle->get()); }
  int messages() const { return actor().messages; }
  /// Until so many have come in all.
  bool wait(int n) const {
    for (int i = 0; i < 10'000 && messages() < n; i++) std::this_thread::sleep_for(1ms);
    return messages() == n;
  }
  caf::strong_actor_ptr handle;
};

}  // namespace

TEST_CASE("a request that was under way when the connection ends fails at once") {
  Node coordinator, worker;
  Cord cord;
  const EchoActor front = worker.join(coordinator, cord);
  caf::scoped_actor self(*worker.system);
  auto asked = self->request(front, 20s, caf::atom("never"));
  const auto begin = std::chrono::steady_clock::now();
  cord.cut();
  caf::error failure;
  asked.receive([](const std::string&) {}, [&](caf::error& error) { failure = error; });
  CHECK(failure == caf::exit_reason::remote_link_unreachable);
  CHECK(std::chrono::steady_clock::now() - begin < 10s);
}

TEST_CASE("a request to an actor whose connection has ended fails at once") {
  Node coordinator, worker;
  Cord cord;
  const EchoActor front = worker.join(coordinator, cord);
  auto down = worker.watch(front);
  cord.cut();
  down.get();
  const auto begin = std::chrono::steady_clock::now();
  caf::scoped_actor self(*worker.system);
  for (int i = 0; i < 3; i++)  // the first may come while the others' questions are being ended
    CHECK(worker.ask(self, front, {0, 0, "late"}).text.find("unreachable") != std::string::npos);
  CHECK(std::chrono::steady_clock::now() - begin < 10s);
}

TEST_CASE("a request fails at once when the actor ends that was asked from afar") {
  Node coordinator, worker;
  const EchoActor front = worker.join(coordinator);
  caf::scoped_actor self(*worker.system);
  auto asked = self->request(front, 20s, caf::atom("never"));
  worker.ask(front, {0, 0, "sync"});
  const auto begin = std::chrono::steady_clock::now();
  caf::anon_send_exit(coordinator.front, caf::exit_reason::kill);
  bool failed = false;
  asked.receive([](const std::string&) {}, [&](caf::error&) { failed = true; });
  CHECK(failed);
  CHECK(std::chrono::steady_clock::now() - begin < 10s);
}

TEST_CASE("who has an answer gets no other when the connection ends, and who waits is told") {
  Node coordinator, worker;
  Cord cord;
  const EchoActor front = worker.join(coordinator, cord);
  const Asker asker(*worker.system);
  const auto to = caf::actor_cast<caf::strong_actor_ptr>(front);
  uint64_t number = 0;
  const auto ask = [&](caf::message what) {
    to->enqueue(asker.handle, caf::make_message_id(++number), std::move(what), nullptr);
  };
  for (int i = 0; i < 100; i++) ask(caf::make_message(Question{0, 0, "x"}));
  CHECK(asker.wait(100));
  for (int i = 0; i < 3; i++) ask(caf::make_message(caf::atom("never")));
  worker.ask(front, {0, 0, "sync"});  // they are there
  CHECK(asker.messages() == 100);
  cord.cut();
  CHECK(asker.wait(103));
  std::this_thread::sleep_for(50ms);
  CHECK(asker.messages() == 103);
}

TEST_CASE("many threads that ask are all told when the connection ends") {
  Node coordinator, worker;
  Cord cord;
  const EchoActor front = worker.join(coordinator, cord);
  std::atomic<int> answers = 0, failures = 0;
  constexpr int kAskers = 4;
  std::vector<std::thread> askers;
  for (int i = 0; i < kAskers; i++)
    askers.emplace_back([&] {
      caf::scoped_actor self(*worker.system);
      for (bool there = true; there;)
        self->request(front, 20s, Question{0, 0, "x"})
            .receive([&](const Reply&) { answers++; },
                     [&](const caf::error&) {
                       failures++;
                       there = false;
                     });
      caf::logger::set_current_actor_system(nullptr);
    });
  while (answers < 100) std::this_thread::sleep_for(1ms);
  const auto begin = std::chrono::steady_clock::now();
  cord.cut();
  for (std::thread& asker : askers) asker.join();
  CHECK(failures == kAskers);
  CHECK(std::chrono::steady_clock::now() - begin < 10s);
}

TEST_CASE("of what was asked nothing is kept once it has been answered") {
  caf::actor_system_config config;
  caf::actor_system system(config);
  const Asker asker(system);
  const auto id = [](uint64_t number) { return caf::message_id(number); };
  AskedPeer peer;
  constexpr caf::actor_id kFirst = 7, kSecond = 8;
  peer.ask(kFirst, asker.handle, id(1));
  peer.ask(kSecond, asker.handle, id(2));
  peer.ask(kSecond, asker.handle, id(3));
  CHECK(peer.open_questions() == 3);
  peer.answered(asker.handle->id(), id(2).response_id());
  peer.answered(asker.handle->id() + 1, id(1).response_id());  // somebody else's
  CHECK(peer.open_questions() == 2);
  peer.end(kSecond);
  CHECK(peer.open_questions() == 1);
  CHECK(asker.messages() == 1);
  peer.end(kFirst);
  CHECK(asker.messages() == 2);
  CHECK(peer.open_questions() == 0);
}
