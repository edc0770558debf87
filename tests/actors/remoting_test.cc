#include "actors/remoting.h"

#include <doctest/doctest.h>
#include <sys/socket.h>

#include <caf/io/basp/header.hpp>
#include <caf/io/basp/version.hpp>
#include <cmath>
#include <csignal>
#include <future>
#include <limits>

#include "actors/memory.h"
#include "net/basp_guard.h"
#include "tests/actors/remoting_fixture.h"
#include "tests/net/basp_words.h"
#include "tests/thread_count.h"

using namespace fastserve;
using namespace std::chrono_literals;

TEST_CASE("an actor of another system answers, and numbers keep their bits") {
  Node coordinator, worker;
  const EchoActor front = worker.join(coordinator);
  CHECK(front->node() == coordinator.system->node());
  for (const double x : {0.1, -0.0, std::nan(""), -std::numeric_limits<double>::infinity(),
                         std::numeric_limits<double>::denorm_min()}) {
    const Reply reply = worker.ask(front, {x, static_cast<float>(x), "what?"});
    CHECK(std::bit_cast<uint64_t>(reply.x.value) == std::bit_cast<uint64_t>(x));
    CHECK(std::bit_cast<uint32_t>(reply.y.value) == std::bit_cast<uint32_t>(static_cast<float>(x)));
    CHECK(reply.text == "what?");
  }
}

TEST_CASE("two systems have different ids, in one process and in two") {
  Node here, there;
  CHECK(here.system->node() != there.system->node());
  ChildNode child;
  const EchoActor front = here.join(child.take_socket());
  CHECK(front->node() != here.system->node());
  CHECK(here.ask(front, {1, 2, "hello"}).text == "hello");
}

TEST_CASE("a system that speaks with others listens at no port") {
  Node coordinator, worker;
  worker.join(coordinator);
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    int listens = 0;
    socklen_t size = sizeof listens;
    const int fd = std::stoi(entry.path().filename());
    if (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0) CHECK(listens == 0);
  }
}

TEST_CASE("both sides are told when a connection is cut, at once") {
  Node coordinator, worker;
  Cord cord;
  const EchoActor front = worker.join(coordinator, cord);
  worker.introduce(front);  // the coordinator's actor monitors the worker's
  auto down = worker.watch(front);
  const auto begin = std::chrono::steady_clock::now();
  cord.cut();
  CHECK(down.get() == caf::exit_reason::remote_link_unreachable);
  CHECK(coordinator.wait_for_lost(1));
  CHECK(std::chrono::steady_clock::now() - begin < 2s);
  CHECK(worker.ended.wait().code == ErrorCode::kUnavailable);
  CHECK(coordinator.ended.wait().code == ErrorCode::kUnavailable);
}

TEST_CASE("an actor that ends is reported to those who monitor it from afar") {
  Node coordinator, worker;
  const EchoActor front = worker.join(coordinator);
  auto down = worker.watch(front);
  worker.ask(front, {0, 0, "sync"});  // the coordinator knows by now who wants to know
  caf::anon_send_exit(coordinator.front, caf::exit_reason::user_shutdown);
  CHECK(down.get() == caf::exit_reason::user_shutdown);
}

TEST_CASE("a request that is never answered fails after its time") {
  Node coordinator, worker;
  const EchoActor front = worker.join(coordinator);
  caf::scoped_actor self(*worker.system);
  caf::error failure;
  self->request(front, 50ms, caf::atom("never"))
      .receive([](const std::string&) {}, [&](caf::error& error) { failure = error; });
  CHECK(failure == caf::sec::request_timeout);
}

TEST_CASE("a peer process that is killed is noticed at once") {
  Node worker;
  ChildNode child;
  const EchoActor front = worker.join(child.take_socket());
  auto down = worker.watch(front);
  child.signal(SIGKILL);
  CHECK(down.wait_for(2s) == std::future_status::ready);
  CHECK(worker.ended.wait().code == ErrorCode::kUnavailable);
}

TEST_CASE("a peer process that stands still is noticed after five to six seconds") {
  Node worker;
  ChildNode child;
  const EchoActor front = worker.join(child.take_socket());
  auto down = worker.watch(front);
  CHECK(down.wait_for(1500ms) == std::future_status::timeout);
  const auto begin = std::chrono::steady_clock::now();
  child.signal(SIGSTOP);
  CHECK(down.wait_for(20s) == std::future_status::ready);
  const auto took = std::chrono::steady_clock::now() - begin;
  CHECK(took > 3s);
  CHECK(took < 7s);
  CHECK(worker.ended.wait().what == "has said nothing for 5.0 s");
}

TEST_CASE("a message of four megabytes passes") {
  Node coordinator, worker;
  const EchoActor front = worker.join(coordinator);
  const std::string text(4 << 20, 'x');
  CHECK(worker.ask(front, {0, 0, text}).text == text);
}

TEST_CASE("a node may come back a thousand times, and each time finds who answers now") {
  Node coordinator, worker;
  const auto files = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                         std::filesystem::directory_iterator());
  };
  uint64_t memory = 0;
  std::ptrdiff_t open = 0;
  size_t threads = 0;
  const int rounds = kUnderSanitizer ? 40 : 1000;
  for (int i = 0; i < rounds; i++) {
    Cord cord;
    const EchoActor front = worker.join(coordinator, cord);
    CHECK(worker.ask(front, {0, 0, "again"}).text == "again");
    cord.cut();
    worker.ended.wait_for_count(i + 1);
    coordinator.ended.wait_for_count(i + 1);
    if (i != rounds / 5) continue;
    memory = process_memory();
    open = files();
    threads = thread_count();
  }
  CHECK(files() <= open + 4);  // those of the last connection may be on their way out
  CHECK(thread_count() <= threads + 2);
  if (!kUnderSanitizer) CHECK(process_memory() < memory + (4 << 20));
}

TEST_CASE("a node that comes back replaces its connection that is half dead") {
  Node coordinator, worker;
  const EchoActor first = worker.join(coordinator);
  worker.introduce(first);
  auto down = worker.watch(first);
  const EchoActor second = worker.join(coordinator);  // the old one is still there
  CHECK(down.get() == caf::exit_reason::remote_link_unreachable);
  CHECK(coordinator.wait_for_lost(1));
  CHECK(worker.ask(second, {0, 0, "hi"}).text == "hi");
  worker.introduce(second);
  CHECK(coordinator.ended.wait().code == ErrorCode::kUnavailable);
  CHECK_FALSE(coordinator.wait_for_lost(2, 50ms));
}

TEST_CASE("a handle of a node that the receiver does not know arrives empty, and nothing breaks") {
  Node coordinator, worker, third;
  const EchoActor front = worker.join(coordinator);
  const EchoActor stranger = worker.join(third);
  caf::scoped_actor self(*worker.system);
  self->send(front, Introduction{stranger});
  CHECK(worker.ask(front, {0, 0, "alive"}).text == "alive");
  CHECK(coordinator.empty_introductions == 1);
}

TEST_CASE("a peer of another version, or one that is not ready, is refused with what to do") {
  Node coordinator, worker;
  const auto refused = worker.try_join<OtherActor>(coordinator);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kUnsupported);
  CHECK(refused.error().message().find("update the older") != std::string::npos);
  Node empty(false);
  const auto unready = worker.try_join<EchoActor>(empty);
  REQUIRE_FALSE(unready.ok());
  CHECK(unready.error().code == ErrorCode::kUnavailable);
  CHECK(worker.ended.count() == 0);  // nothing had been opened
}

TEST_CASE("joining by a stream at whose end nobody answers fails after the time that was set") {
  Node worker;
  SocketPair pair;
  const auto late =
      worker.remoting->join<EchoActor>(plain_stream(std::move(pair.a), "mute"), 30ms, {});
  REQUIRE_FALSE(late.ok());
  CHECK(late.error().code == ErrorCode::kDeadlineExceeded);
  SocketPair closed;
  closed.b = Socket();
  const auto gone =
      worker.remoting->join<EchoActor>(plain_stream(std::move(closed.a), "gone"), 10s, {});
  REQUIRE_FALSE(gone.ok());
  CHECK(gone.error().message() == "gone: has closed the connection");
}

TEST_CASE("a peer that sends garbage is cut off, and nobody else notices") {
  Node coordinator, worker;
  const EchoActor front = worker.join(coordinator);
  using namespace fastserve::basp;
  const std::vector<Bytes> garbage = {
      noise(32, 1), hello() + noise(500, 2),
      hello() + hello(kSelect) + header(2, 0, 0xFFFFFFFF, 1, 1, 1),
      hello() + hello(kSelect) + message("@<>+@message"),
      hello() + hello(kSelect) + message("@<>+test.Question", noise(99, 3))};
  for (size_t i = 0; i < garbage.size(); i++) {
    SocketPair pair;
    REQUIRE(coordinator.adopt(std::move(pair.a)).ok());
    CHECK(::send(pair.b.get(), garbage[i].data(), garbage[i].size(), 0) ==
          static_cast<ssize_t>(garbage[i].size()));
    if (i + 1 == garbage.size())
      pair.b = Socket();  // the last one is well-formed, as far as we know
    const Error why = coordinator.ended.wait_for_count(static_cast<int>(i) + 1);
    CHECK(why.code == (i + 1 == garbage.size() ? ErrorCode::kUnavailable : ErrorCode::kCorrupt));
    CHECK(worker.ask(front, {0, 0, "still here"}).text == "still here");
  }
}

TEST_CASE("a peer that speaks in the name of too many actors is cut off") {
  Node coordinator;
  using namespace fastserve::basp;
  SocketPair pair;
  REQUIRE(coordinator.adopt(std::move(pair.a)).ok());
  Bytes all = hello() + hello(kSelect);
  const Bytes body = bytes_of({0, 0, 0}) + text("@<>");
  for (uint64_t actor = 1; actor <= 11'000; actor++) {  // asks an actor that is not there
    const Bytes request = header(2, 0, static_cast<uint32_t>(body.size()), actor, actor, 1 << 30);
    all.insert(all.end(), request.begin(), request.end());
    all.insert(all.end(), body.begin(), body.end());
  }
  std::thread reader([&] {  // takes the answers, or neither side could go on
    std::vector<char> answers(1 << 16);
    while (::recv(pair.b.get(), answers.data(), answers.size(), 0) > 0) continue;
  });
  (void)::send(pair.b.get(), all.data(), all.size(), MSG_NOSIGNAL);
  CHECK(coordinator.ended.wait().what == "speaks in the name of more than 10000 actors");
  reader.join();
}

TEST_CASE("a peer that takes nothing of what it is sent is cut off before memory is out") {
  Node coordinator, worker;
  Cord cord;
  const EchoActor front = worker.join(coordinator, cord);
  coordinator.hold_loop();
  caf::scoped_actor self(*worker.system);
  const std::string large(4 << 20, 'x');
  for (int i = 0; i < 20; i++) self->send(front, Question{0, 0, large});
  CHECK(worker.ended.wait().what.find("does not take what it is sent") != std::string::npos);
  coordinator.let_loop_go();
}

TEST_CASE("a system may end while it is connected") {
  for (const bool coordinator_first : {true, false}) {
    std::optional<Node> coordinator(std::in_place), worker(std::in_place);
    worker->join(*coordinator);
    (coordinator_first ? coordinator : worker).reset();
  }
}

TEST_CASE("what the guard knows of the protocol is what CAF speaks") {
  CHECK(BaspGuard::kVersion == caf::io::basp::version);
  CHECK(BaspGuard::kHeaderBytes == caf::io::basp::header_size);
}

// Figures, for a person to look at: run with --no-skip.
TEST_CASE("round trips and throughput of small messages" * doctest::skip()) {
  ChildNode child;
  Node worker;
  const EchoActor front = worker.join(child.take_socket());
  caf::scoped_actor self(*worker.system);
  const auto clock = [] { return std::chrono::steady_clock::now(); };
  std::vector<double> micros;
  for (int i = 0; i < 5000; i++) {
    const auto begin = clock();
    worker.ask(self, front, {0, 0, "x"});
    micros.push_back(std::chrono::duration<double, std::micro>(clock() - begin).count());
  }
  std::sort(micros.begin(), micros.end());
  const auto begin = clock();
  int answers = 0;
  constexpr int kMessages = 100'000, kFlight = 256;
  for (int sent = 0; answers < kMessages;) {
    for (; sent < kMessages && sent - answers < kFlight; sent++)
      self->send(front, Question{0, 0, "x"});
    self->receive([&](const Reply&) { answers++; });
  }
  const double seconds = std::chrono::duration<double>(clock() - begin).count();
  MESSAGE("round trip: median " << micros[2500] << " us, 99th of 100 " << micros[4950] << " us; "
                                << kMessages / seconds << " round trips/s with 256 under way");
}
