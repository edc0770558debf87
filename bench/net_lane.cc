// A bulk lane against the raw sockets under it, in turn: both ends in this process, over loopback.
//   net_lane [MiB a message] [pairs] [all|tls] [streams] [network]
// tls: only the rows under TLS. The lane has so many streams (1); the raw socket is always one.
// With a network that tests/netns/net.sh has put up, the ends are at its places 0 and 1.
#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "net/bulk_lane.h"
#include "net/tls.h"

using namespace fastserve;

namespace {

using Bytes = std::vector<std::byte>;

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

/// How fast, and at what price.
struct Turn {
  double rate, cpu;  // GB/s, CPU seconds a GB
};

Turn measure(double gigabytes, const std::function<void()>& work) {
  const double cpu = cpu_seconds();
  const auto start = std::chrono::steady_clock::now();
  work();
  const auto elapsed = std::chrono::steady_clock::now() - start;
  return {gigabytes / std::chrono::duration<double>(elapsed).count(),
          (cpu_seconds() - cpu) / gigabytes};
}

std::string network;

/// Does it at that place of the network: sockets stay where they were made.
template <class Work>
auto at(int place, Work work) {
  std::optional<decltype(work())> made;
  std::thread([&] {
    if (!network.empty()) {
      const std::string path = fmt::format("/var/run/netns/{}-{}", network, place);
      const int space = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
      FS_CHECK(space >= 0 && ::setns(space, CLONE_NEWNET) == 0);
      ::close(space);
    }
    made.emplace(work());
  }).join();
  return std::move(*made);
}

/// Two ends of a TCP connection.
std::pair<Socket, Socket> connected() {
  const char* address = network.empty() ? "127.0.0.1" : "10.213.77.1";
  BoundPort port = at(0, [&] { return bind_to(address, 0, !network.empty()).value(); });
  FS_CHECK(listen_at(port).ok());
  Socket client =
      at(1, [&] { return connect_to(address, port.port, std::chrono::seconds(5)).value(); });
  Socket server(-1);
  while (server.get() < 0)
    server = Socket(::accept4(port.socket.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const int one = 1;  // as the gate does, and connect_to()
  ::setsockopt(server.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return {std::move(client), std::move(server)};
}

void set_blocking(const Socket& socket) {
  ::fcntl(socket.get(), F_SETFL, ::fcntl(socket.get(), F_GETFL) & ~O_NONBLOCK);
}

/// As fast as the kernel carries it: one thread a direction and end, 256 KiB a call.
class Raw {
 public:
  Raw() : ends_(connected()) {
    set_blocking(ends_.first);
    set_blocking(ends_.second);
  }
  void move(const Bytes& out, Bytes& in, Bytes& back, bool both) {
    std::vector<std::thread> threads;
    threads.emplace_back([&] { send_all(ends_.first, out); });
    threads.emplace_back([&] { receive_all(ends_.second, in); });
    if (both) {
      threads.emplace_back([&] { send_all(ends_.second, out); });
      threads.emplace_back([&] { receive_all(ends_.first, back); });
    }
    for (std::thread& thread : threads) thread.join();
  }

 private:
  static constexpr size_t kPiece = 256 << 10;
  static void send_all(const Socket& socket, const Bytes& bytes) {
    for (size_t at = 0; at < bytes.size();)
      at += static_cast<size_t>(
          ::send(socket.get(), bytes.data() + at, std::min(kPiece, bytes.size() - at), 0));
  }
  static void receive_all(const Socket& socket, Bytes& bytes) {
    for (size_t at = 0; at < bytes.size();)
      at += static_cast<size_t>(
          ::recv(socket.get(), bytes.data() + at, std::min(kPiece, bytes.size() - at), 0));
  }
  std::pair<Socket, Socket> ends_;
};

class Arrivals final : public BulkReceiver {
 public:
  explicit Arrivals(Bytes& into) : into_(into) {}
  Result<BulkPlace> place(const BulkTag&, uint64_t) override {
    return BulkPlace{{std::span(into_)}, nullptr};
  }
  void arrived(const BulkTag&, BulkPlace) override {
    std::lock_guard lock(mutex_);
    count_++;
    changed_.notify_all();
  }
  void closed(const Error&) override {}
  void wait_for(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return count_ >= count; });
  }

 private:
  Bytes& into_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;
};

std::pair<std::unique_ptr<Stream>, std::unique_ptr<Stream>> streams(bool tls) {
  auto [client, server] = connected();
  if (!tls)
    return {plain_stream(std::move(client), "server"), plain_stream(std::move(server), "client")};
  const int64_t now = SystemClock().unix_seconds();
  const auto authority = CertificateAuthority::create(now).value();
  const KeyAndRequest key = make_key_and_request().value();
  const std::string certificate =
      authority.sign(key.request, {authority.cluster(), "bench", {}, now + 3600}, now).value();
  const TlsParty party = TlsParty::create({certificate, key.key, authority.certificate()}).value();
  std::unique_ptr<Stream> answered;
  std::thread server_side([&, socket = std::move(server)]() mutable {
    answered = party.accept(std::move(socket), "client", {"bulk/1"}, {}, std::chrono::seconds(5))
                   .value()
                   .stream;
  });
  auto asked =
      party.connect(std::move(client), "server", "", {"bulk/1"}, std::chrono::seconds(5)).value();
  server_side.join();
  return {std::move(asked.stream), std::move(answered)};
}

class Lane {
 public:
  Lane(Bytes& in, Bytes& back, bool tls, int count) : at_b_(in), at_a_(back) {
    std::vector<std::unique_ptr<Stream>> left, right;
    for (int i = 0; i < count; i++) {
      auto [a, b] = streams(tls);
      left.push_back(std::move(a));
      right.push_back(std::move(b));
    }
    a_ = BulkLane::start(std::move(left), at_a_, {}).value();
    b_ = BulkLane::start(std::move(right), at_b_, {}).value();
  }
  void move(const Bytes& out, bool both) {
    turns_++;
    a_->send({}, {{std::span(out), nullptr}}, 0);
    if (both) b_->send({}, {{std::span(out), nullptr}}, 0), returns_++;
    at_b_.wait_for(turns_);
    at_a_.wait_for(returns_);
  }

 private:
  Arrivals at_b_, at_a_;
  std::unique_ptr<BulkLane> a_, b_;
  int turns_ = 0, returns_ = 0;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::string summary(const std::vector<Turn>& turns) {
  std::vector<double> rates, cpus;
  for (const Turn& turn : turns) rates.push_back(turn.rate), cpus.push_back(turn.cpu);
  const auto [least, most] = std::minmax_element(rates.begin(), rates.end());
  return fmt::format("{:5.2f} GB/s ({:.2f}-{:.2f}) {:.2f} CPU s/GB", median(rates), *least, *most,
                     median(cpus));
}

struct Row {
  size_t bytes;
  int pairs, streams;
};

void compare(const std::string& name, const Row& row, bool both, bool tls) {
  const auto [bytes, pairs, count] = row;
  Bytes out(bytes, std::byte{7}), in(bytes), back(bytes);
  Raw raw;
  Lane lane(in, back, tls, count);
  raw.move(out, in, back, both);  // touches all memory
  lane.move(out, both);
  const double gigabytes = static_cast<double>(bytes) * (both ? 2 : 1) / 1e9;
  std::vector<Turn> a, b;
  std::vector<double> ratios;
  for (int i = 0; i < pairs; i++) {
    a.push_back(measure(gigabytes, [&] { lane.move(out, both); }));
    b.push_back(measure(gigabytes, [&] { raw.move(out, in, back, both); }));
    ratios.push_back(a.back().rate / b.back().rate);
  }
  fmt::print("{:21} lane {}  raw {}  ratio {:.2f}\n", name, summary(a), summary(b), median(ratios));
}

}  // namespace

int main(int argc, char** argv) {
  const size_t bytes = static_cast<size_t>(argc > 1 ? std::atoi(argv[1]) : 256) << 20;
  if (argc > 5) network = argv[5];
  const bool plain = argc <= 3 || std::string_view(argv[3]) != "tls";
  const Row row{bytes, argc > 2 ? std::atoi(argv[2]) : 9, argc > 4 ? std::atoi(argv[4]) : 1};
  fmt::print(
      "{} MiB a message, {} pairs, {} streams, checksums where not under TLS, window 8 x 256 KiB\n",
      bytes >> 20, row.pairs, row.streams);
  if (plain) {
    compare("push", row, false, false);
    compare("push + pull", row, true, false);
  }
  compare("push, TLS 1.3", row, false, true);
  compare("push + pull, TLS 1.3", row, true, true);
}
