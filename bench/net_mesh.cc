// The tensors of a job over n processes, each of which trains and holds an n-th of the parameters:
// every one pushes slices of its gradient to all others and gets slices of weights from them. The
// compute between is a wait that costs no CPU; sums are added where --sum is given. In the same
// run: raw sockets moving the same bytes between as many processes, which gives B in 2(n-1)M/(nB).
//   net_mesh PROCESSES [MB of parameters] [compute ms] [steps] [tls] [sum]
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <new>
#include <thread>

#include "net/bulk_lane.h"
#include "net/tls.h"

using namespace fastserve;

namespace {

using Bytes = std::vector<std::byte>;
using Seconds = std::chrono::duration<double>;

constexpr size_t kPiece = 256 << 10;
constexpr int kMost = 16;  // processes

struct Settings {
  int processes = 2;
  size_t slice = 0;  // bytes of one process's shard
  Seconds compute{0};
  int steps = 8;
  bool tls = false, sum = false;
};

/// Lies in memory that all processes share.
struct Shared {
  pthread_barrier_t barrier;
  double raw[kMost], lane[kMost], lane_cpu[kMost], raw_cpu[kMost];  // a step
};

double seconds_now() {
  return Seconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::pair<Socket, Socket> connected() {
  BoundPort port = bind_to("127.0.0.1", 0, false).value();
  FS_CHECK(listen_at(port).ok());
  Socket client = connect_to("127.0.0.1", port.port, std::chrono::seconds(5)).value();
  Socket server(-1);
  while (server.get() < 0)
    server = Socket(::accept4(port.socket.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  const int one = 1;  // as the gate does, and connect_to()
  ::setsockopt(server.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return {std::move(client), std::move(server)};
}

/// A process's sockets to all others; its own place is empty.
using Sockets = std::vector<Socket>;

std::vector<Sockets> connect_all(int n) {
  std::vector<Sockets> all(static_cast<size_t>(n));
  for (auto& one : all) one.resize(static_cast<size_t>(n));
  for (size_t i = 0; i < all.size(); i++)
    for (size_t j = i + 1; j < all.size(); j++) std::tie(all[i][j], all[j][i]) = connected();
  return all;
}

/// Moves a step's bytes as fast as the kernel carries them: one thread sends, one receives.
class RawMesh {
 public:
  RawMesh(Sockets sockets, size_t me) : sockets_(std::move(sockets)), me_(me) {}

  void step(const Bytes& out, std::vector<Bytes>& in) {
    std::thread sender([&] {
      for (int phase = 0; phase < 2; phase++)
        for (size_t k = 1; k < sockets_.size(); k++)
          send_all(sockets_[(me_ + k) % sockets_.size()], out);
    });
    receive_all(2 * out.size(), in);
    sender.join();
  }

 private:
  static void send_all(const Socket& socket, const Bytes& bytes) {
    for (size_t at = 0; at < bytes.size();) {
      const ssize_t sent = ::send(socket.get(), bytes.data() + at,
                                  std::min(kPiece, bytes.size() - at), MSG_NOSIGNAL);
      if (sent > 0) at += static_cast<size_t>(sent);
      pollfd full{socket.get(), POLLOUT, 0};
      if (sent <= 0) ::poll(&full, 1, -1);
    }
  }
  void receive_all(size_t bytes, std::vector<Bytes>& in) {
    std::vector<size_t> left(sockets_.size(), bytes);
    left[me_] = 0;
    while (true) {
      std::vector<pollfd> waiting;
      std::vector<size_t> peers;
      for (size_t j = 0; j < left.size(); j++) {
        if (left[j] == 0) continue;
        waiting.push_back({sockets_[j].get(), POLLIN, 0});
        peers.push_back(j);
      }
      if (peers.empty()) return;
      ::poll(waiting.data(), waiting.size(), -1);
      for (size_t i = 0; i < peers.size(); i++) {
        if ((waiting[i].revents & POLLIN) == 0) continue;
        Bytes& into = in[peers[i]];
        const size_t at = (left[peers[i]] - 1) % into.size();  // somewhere in it
        const size_t n = std::min({kPiece, left[peers[i]], into.size() - at});
        const ssize_t got = ::recv(waiting[i].fd, into.data() + at, n, 0);
        if (got > 0) left[peers[i]] -= static_cast<size_t>(got);
      }
    }
  }
  Sockets sockets_;
  size_t me_;
};

/// What has come from all peers together.
struct Arrivals {
  std::mutex mutex;
  std::condition_variable changed;
  int gradients = 0, weights = 0;
  void wait_for(int Arrivals::*which, int count) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return this->*which >= count; });
  }
};

constexpr uint64_t kGradient = 1, kWeights = 2;

class Peer final : public BulkReceiver {
 public:
  Peer(Arrivals& arrivals, size_t slice) : arrivals_(arrivals), gradient(slice), weights(slice) {}
  Result<BulkPlace> place(const BulkTag& tag, uint64_t) override {
    return BulkPlace{{std::span(tag.kind == kGradient ? gradient : weights)}, nullptr};
  }
  void arrived(const BulkTag& tag, BulkPlace) override {
    const std::lock_guard lock(arrivals_.mutex);
    (tag.kind == kGradient ? arrivals_.gradients : arrivals_.weights)++;
    arrivals_.changed.notify_all();
  }
  void closed(const Error&) override {}

 private:
  Arrivals& arrivals_;

 public:
  Bytes gradient, weights;
  std::unique_ptr<BulkLane> lane;
};

class LaneMesh {
 public:
  LaneMesh(Sockets sockets, size_t me, const Settings& settings, const TlsParty& party)
      : settings_(settings), shard_(settings.slice) {
    for (size_t j = 0; j < sockets.size(); j++) {
      if (j == me) continue;
      auto peer = std::make_unique<Peer>(arrivals_, settings.slice);
      std::vector<std::unique_ptr<Stream>> streams;
      streams.push_back(stream_of(std::move(sockets[j]), me < j, party));
      peer->lane = BulkLane::start(std::move(streams), *peer, {}).value();
      peers_.push_back(std::move(peer));
    }
    std::rotate(peers_.begin(), peers_.begin() + static_cast<ptrdiff_t>(me), peers_.end());
  }

  void step(const Bytes& gradient) {
    steps_++;
    std::this_thread::sleep_for(settings_.compute);
    send_all(kGradient, gradient);
    arrivals_.wait_for(&Arrivals::gradients, steps_ * static_cast<int>(peers_.size()));
    if (settings_.sum)
      for (const auto& peer : peers_) add(peer->gradient);
    send_all(kWeights, shard_);
    arrivals_.wait_for(&Arrivals::weights, steps_ * static_cast<int>(peers_.size()));
  }

 private:
  std::unique_ptr<Stream> stream_of(Socket socket, bool first, const TlsParty& party) const {
    if (!settings_.tls) return plain_stream(std::move(socket), "peer");
    constexpr auto patience = std::chrono::seconds(20);
    return first ? party.connect(std::move(socket), "peer", "", {"mesh/1"}, patience).value().stream
                 : party.accept(std::move(socket), "peer", {"mesh/1"}, {}, patience).value().stream;
  }
  void send_all(uint64_t kind, const Bytes& bytes) {
    for (const auto& peer : peers_)
      peer->lane->send({kind, 0, static_cast<uint64_t>(steps_), 0}, {{std::span(bytes), nullptr}},
                       0);
  }
  void add(const Bytes& other) {
    auto* into = reinterpret_cast<float*>(shard_.data());
    const auto* from = reinterpret_cast<const float*>(other.data());
    for (size_t i = 0; i < shard_.size() / sizeof(float); i++) into[i] += from[i];
  }

  const Settings& settings_;
  Arrivals arrivals_;
  std::vector<std::unique_ptr<Peer>> peers_;
  Bytes shard_;
  int steps_ = 0;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Median seconds of `steps`, each begun together; and CPU seconds of one.
std::pair<double, double> time_steps(Shared& shared, int steps, const std::function<void()>& step) {
  step();  // touches all memory
  std::vector<double> times;
  const double cpu = cpu_seconds();
  for (int i = 0; i < steps; i++) {
    ::pthread_barrier_wait(&shared.barrier);
    const double start = seconds_now();
    step();
    ::pthread_barrier_wait(&shared.barrier);
    times.push_back(seconds_now() - start);
  }
  return {median(times), (cpu_seconds() - cpu) / steps};
}

void live(Shared& shared, size_t me, Sockets raw, Sockets lanes, const Settings& settings,
          const TlsParty& party) {
  const Bytes out(settings.slice, std::byte{0});
  {
    std::vector<Bytes> in(raw.size(), Bytes(settings.slice));
    RawMesh mesh(std::move(raw), me);
    std::tie(shared.raw[me], shared.raw_cpu[me]) =
        time_steps(shared, settings.steps, [&] { mesh.step(out, in); });
  }
  LaneMesh mesh(std::move(lanes), me, settings, party);
  std::tie(shared.lane[me], shared.lane_cpu[me]) =
      time_steps(shared, settings.steps, [&] { mesh.step(out); });
}

TlsParty make_party() {
  const int64_t now = SystemClock().unix_seconds();
  const auto authority = CertificateAuthority::create(now).value();
  const KeyAndRequest key = make_key_and_request().value();
  const std::string certificate =
      authority.sign(key.request, {authority.cluster(), "bench", {}, now + 3600}, now).value();
  return TlsParty::create({certificate, key.key, authority.certificate()}).value();
}

Shared& share(int processes) {
  void* const memory =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  FS_CHECK(memory != MAP_FAILED);
  Shared& shared = *new (memory) Shared();
  pthread_barrierattr_t attributes;
  ::pthread_barrierattr_init(&attributes);
  ::pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  ::pthread_barrier_init(&shared.barrier, &attributes, static_cast<unsigned>(processes));
  return shared;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  settings.processes = argc > 1 ? std::atoi(argv[1]) : 2;
  FS_CHECK(settings.processes >= 2 && settings.processes <= kMost);
  const double megabytes = argc > 2 ? std::atof(argv[2]) : 49.2;
  settings.slice = static_cast<size_t>(megabytes * 1e6 / settings.processes) / 64 * 64;
  settings.compute = Seconds(argc > 3 ? std::atof(argv[3]) / 1000 : 0);
  settings.steps = argc > 4 ? std::atoi(argv[4]) : 8;
  for (int i = 5; i < argc; i++) {
    settings.tls = settings.tls || argv[i] == std::string_view("tls");
    settings.sum = settings.sum || argv[i] == std::string_view("sum");
  }
  const TlsParty party = make_party();
  std::vector<Sockets> raw = connect_all(settings.processes);
  std::vector<Sockets> lanes = connect_all(settings.processes);
  Shared& shared = share(settings.processes);
  for (size_t me = 0; me < raw.size(); me++)
    if (::fork() == 0) {
      live(shared, me, std::move(raw[me]), std::move(lanes[me]), settings, party);
      std::_Exit(0);
    }
  for (size_t i = 0; i < raw.size(); i++) ::wait(nullptr);
  const auto n = static_cast<double>(settings.processes);
  const auto total = [&](const double(&of)[kMost]) {
    double sum = 0;
    for (size_t i = 0; i < raw.size(); i++) sum += of[i];
    return sum;
  };
  const double bytes = 2 * (n - 1) * static_cast<double>(settings.slice);
  const double best = shared.raw[0] + settings.compute.count();
  fmt::print(
      "{} processes, {:.1f} MB, compute {:.0f} ms{}{}: step {:.1f} ms, optimum {:.1f} ms (raw "
      "{:.1f} ms, "
      "B {:.2f} GB/s a process), ratio {:.2f}; CPU a step {:.0f} ms, raw {:.0f} ms\n",
      settings.processes, megabytes, settings.compute.count() * 1e3,
      settings.tls ? ", TLS" : ", plain", settings.sum ? ", sums" : "", shared.lane[0] * 1e3,
      best * 1e3, shared.raw[0] * 1e3, bytes / shared.raw[0] / 1e9, shared.lane[0] / best,
      total(shared.lane_cpu) * 1e3, total(shared.raw_cpu) * 1e3);
}
