#include "net/gate.h"

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "net/trusted_networks.h"
#include "tests/net/lane_fixture.h"
#include "tests/thread_count.h"

using namespace fastserve;
using namespace std::chrono_literals;

namespace {

const int64_t kNow = SystemClock().unix_seconds();

struct Cluster {
  CertificateAuthority authority = CertificateAuthority::create(kNow).value();

  TlsParty party(const std::string& node) const {
    const KeyAndRequest made = make_key_and_request().value();
    const NodeClaim claim{authority.cluster(), node, {"trainer"}, kNow + 3600};
    return TlsParty::create({authority.sign(made.request, claim, kNow).value(), made.key,
                             authority.certificate()})
        .value();
  }
};

/// A gate with a protocol for nodes and one for anyone, which keeps who came.
class Doorkeeper {
 public:
  explicit Doorkeeper(Gate::Options options = {}) {
    const auto keep = [this](TlsConnection connection) {
      const std::lock_guard lock(mutex_);
      came_.push_back(std::move(connection));
      changed_.notify_all();
    };
    const auto here = [](const Socket& socket) {
      return TrustedNetworks::parse({}).value().hold_peer_of(socket);
    };
    gate = Gate::start(
               bind_to("127.0.0.1", 0, false).value(), cluster.party("coordinator"),
               {{"nodes/1", false, keep},
                {"anyone/1", true, keep},
                {"far/1", false, keep, [](const Socket&) { return false; }},
                {"near/1", false, keep, here}},
               [this](const NodeClaim& claim) -> Status {
                 asked++;
                 if (claim.node != "removed") return {};
                 return Error{ErrorCode::kInvalidArgument, "was removed", "", ""};
               },
               options)
               .value();
  }

  ~Doorkeeper() { gate.reset(); }  // before what its handlers use

  Socket knock() const { return connect_to("127.0.0.1", gate->port(), 5s).value(); }
  Result<TlsConnection> enter(const TlsParty& who, const std::string& protocol = "nodes/1") const {
    return who.connect(knock(), gate->endpoint(), "", {protocol}, 5s);
  }
  TlsConnection wait_for_one() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !came_.empty(); });
    TlsConnection first = std::move(came_.front());
    came_.erase(came_.begin());
    return first;
  }
  /// Waits until a counter is `n`, or fails the test after ten seconds.
  void wait_until(uint64_t Gate::Counters::*which, uint64_t n) const {
    for (int i = 0; i < 10'000 && gate->counters().*which != n; i++)
      std::this_thread::sleep_for(1ms);
    CHECK(gate->counters().*which == n);
  }

  Cluster cluster;
  std::atomic<int> asked{0};
  std::unique_ptr<Gate> gate;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<TlsConnection> came_;
};

/// Whether the other end closes before long.
bool is_closed(const Socket& socket) {
  pollfd waiting{socket.get(), POLLIN, 0};
  if (::poll(&waiting, 1, 10'000) != 1) return false;
  char byte;
  return ::recv(socket.get(), &byte, 1, MSG_DONTWAIT) <= 0;
}

std::chrono::nanoseconds processor_time() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto of = [](const timeval& t) {
    return std::chrono::seconds(t.tv_sec) + std::chrono::microseconds(t.tv_usec);
  };
  return of(used.ru_utime) + of(used.ru_stime);
}

}  // namespace

TEST_CASE("a gate hands a connection to what it asked for, with who it is") {
  Doorkeeper keeper;
  auto node = keeper.enter(keeper.cluster.party("a"));
  REQUIRE(node.ok());
  TlsConnection came = keeper.wait_for_one();
  CHECK(came.protocol == "nodes/1");
  CHECK(came.claim->node == "a");
  CHECK(came.stream->peer().starts_with("a (127.0.0.1:"));
  const std::string print = fingerprint(keeper.cluster.authority.certificate()).value();
  const auto joining = connect_to_join(keeper.knock(), "x", print, "anyone/1", 5s);
  REQUIRE(joining.ok());
  came = keeper.wait_for_one();
  CHECK(came.protocol == "anyone/1");
  CHECK_FALSE(came.claim);
  CHECK(keeper.asked == 1);
  CHECK(keeper.gate->counters().handed_over == 2);
}

TEST_CASE("who shows no certificate, a foreign one, or was removed does not come in") {
  Doorkeeper keeper;
  const std::string print = fingerprint(keeper.cluster.authority.certificate()).value();
  CHECK_FALSE(connect_to_join(keeper.knock(), "x", print, "nodes/1", 5s).ok());
  CHECK_FALSE(keeper.enter(Cluster().party("a")).ok());
  CHECK_FALSE(keeper.enter(keeper.cluster.party("a"), "nodes/2").ok());
  keeper.wait_until(&Gate::Counters::failed, 3);
  CHECK(keeper.asked == 0);
  (void)keeper.enter(keeper.cluster.party("removed"));
  keeper.wait_until(&Gate::Counters::not_admitted, 1);
  CHECK(keeper.gate->counters().handed_over == 0);
}

TEST_CASE("strangers that do not begin a handshake hold up nobody, and are closed in time") {
  Doorkeeper keeper({.threads = 2, .timeout = 300ms, .log = {}});
  std::vector<Socket> silent, half;
  for (int i = 0; i < 10; i++) {
    silent.push_back(keeper.knock());
    half.push_back(keeper.knock());
    const unsigned char begun[] = {22, 3, 1, 1, 0, 1};  // of a record of 256 bytes
    CHECK(::send(half.back().get(), begun, sizeof begun, 0) == sizeof begun);
  }
  const auto before = processor_time();
  CHECK(keeper.enter(keeper.cluster.party("a")).ok());
  for (const Socket& socket : silent) CHECK(is_closed(socket));
  for (const Socket& socket : half) CHECK(is_closed(socket));
  CHECK(processor_time() - before < 150ms);
  CHECK(keeper.gate->counters().failed == 20);
}

TEST_CASE("who speaks no TLS is closed at once") {
  Doorkeeper keeper({.timeout = 1h, .log = {}});
  const Socket browser = keeper.knock();
  CHECK(::send(browser.get(), "GET / HTTP/1.1\r\n\r\n", 18, 0) == 18);
  CHECK(is_closed(browser));
  CHECK(keeper.gate->counters().failed == 1);
}

TEST_CASE("one connection too many is closed at once, and those that wait are kept") {
  Doorkeeper keeper({.most_waiting = 5, .timeout = 1h, .log = {}});
  std::vector<Socket> waiting;
  for (int i = 0; i < 5; i++) waiting.push_back(keeper.knock());
  keeper.wait_until(&Gate::Counters::accepted, 5);
  CHECK(is_closed(keeper.knock()));
  CHECK(keeper.gate->counters().turned_away == 1);
  pollfd kept{waiting[0].get(), POLLIN, 0};
  CHECK(::poll(&kept, 1, 0) == 0);
  waiting.clear();
  keeper.wait_until(&Gate::Counters::failed, 5);
  CHECK(keeper.enter(keeper.cluster.party("a")).ok());
}

TEST_CASE("a gate closes at once though handshakes are under way, and leaves no thread") {
  const auto before = thread_ids();
  const auto begin = std::chrono::steady_clock::now();
  {
    Doorkeeper keeper({.threads = 2, .timeout = 1h, .log = {}});
    // A hello of a client that then says nothing: taken off the wire of one that does.
    SocketPair pair;
    std::thread client([&] {
      (void)keeper.cluster.party("a").connect(std::move(pair.a), "x", "", {"nodes/1"}, 100ms);
    });
    std::vector<std::byte> hello(16 << 10);
    const ssize_t size = ::recv(pair.b.get(), hello.data(), hello.size(), 0);
    client.join();
    std::vector<Socket> stuck;
    for (int i = 0; i < 4; i++) {
      stuck.push_back(keeper.knock());
      CHECK(::send(stuck.back().get(), hello.data(), static_cast<size_t>(size), 0) == size);
    }
    for (int i = 0; i < 2; i++) {  // the gate has answered these
      pollfd answered{stuck[static_cast<size_t>(i)].get(), POLLIN, 0};
      ::poll(&answered, 1, 5000);
    }
    keeper.gate.reset();
    for (const Socket& socket : stuck) {
      std::vector<std::byte> answer(16 << 10);
      while (::recv(socket.get(), answer.data(), answer.size(), MSG_DONTWAIT) > 0) continue;
      CHECK(is_closed(socket));
    }
  }
  CHECK(std::chrono::steady_clock::now() - begin < 5s);
  CHECK(threads_left_since(before) == 0);
}

TEST_CASE("a gate without descriptors for connections rests instead of spinning, and recovers") {
  Doorkeeper keeper;
  const TlsParty node = keeper.cluster.party("a");
  Socket early = keeper.knock();
  keeper.wait_until(&Gate::Counters::accepted, 1);
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const rlimit before = limit;
  Socket late(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  limit.rlim_cur = static_cast<rlim_t>(late.get() + 1);
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(keeper.gate->port()));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(::connect(late.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  const auto used = processor_time();
  for (int i = 0; i < 10'000 && keeper.gate->counters().accept_errors < 3; i++)
    std::this_thread::sleep_for(1ms);
  CHECK(keeper.gate->counters().accept_errors >= 3);
  CHECK(processor_time() - used < 100ms);
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
  keeper.wait_until(&Gate::Counters::accepted, 2);
  CHECK(keeper.enter(node).ok());
}

TEST_CASE("a renewed certificate is shown to those who come later") {
  Doorkeeper keeper;
  keeper.gate->renew(keeper.cluster.party("renewed"));
  const auto made = keeper.enter(keeper.cluster.party("a"));
  REQUIRE(made.ok());
  CHECK(made->claim->node == "renewed");
}

TEST_CASE("a protocol that is not offered where a connection comes from is as good as unknown") {
  Doorkeeper keeper;
  const TlsParty node = keeper.cluster.party("a");
  CHECK_FALSE(keeper.enter(node, "far/1").ok());
  CHECK(node.connect(keeper.knock(), "x", "", {"far/1", "near/1"}, 5s)->protocol == "near/1");
  CHECK(keeper.wait_for_one().protocol == "near/1");
}
