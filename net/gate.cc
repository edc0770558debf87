#include "net/gate.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <list>
#include <mutex>
#include <system_error>
#include <thread>

#include "net/wake.h"

namespace fastserve {
namespace {

using std::chrono::seconds;

constexpr std::chrono::milliseconds kBreath{100};  // after an accept() that the system refused
constexpr std::chrono::milliseconds kLook{20};     // between looks at a record that is half there
constexpr size_t kRecordHeader = 5;
constexpr uint8_t kHandshakeRecord = 22;

Nanoseconds now() { return std::chrono::steady_clock::now().time_since_epoch(); }

std::string text_of(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = "?";
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    ::inet_ntop(AF_INET, &v4.sin_addr, text, sizeof text);
    return endpoint_text(text, ntohs(v4.sin_port));
  }
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
  ::inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof text);
  return endpoint_text(text, ntohs(v6.sin6_port));
}

/// A connection that has proven nothing yet.
struct Stranger {
  Socket socket;
  std::string endpoint;
  Nanoseconds since{0};
  bool begun = false;  // some bytes are there, but no whole record
};

/// Whether a client's first record is there: what it says is left for TLS to read.
enum class FirstRecord : uint8_t { kPartly, kWhole, kNone };
FirstRecord look_at_first_record(int fd) {
  std::array<uint8_t, kRecordHeader + (16 << 10)> bytes;
  const ssize_t got = ::recv(fd, bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return FirstRecord::kPartly;
  if (got <= 0 || bytes[0] != kHandshakeRecord) return FirstRecord::kNone;
  const auto size = static_cast<size_t>(got);
  if (size < kRecordHeader) return FirstRecord::kPartly;
  const size_t length = static_cast<size_t>(bytes[3]) << 8 | bytes[4];
  if (length > bytes.size() - kRecordHeader) return FirstRecord::kNone;
  return size < kRecordHeader + length ? FirstRecord::kPartly : FirstRecord::kWhole;
}

class ThreadedGate final : public Gate {
 public:
  ThreadedGate(BoundPort port, TlsParty party, std::vector<Protocol> protocols, Admitted admitted,
               Options options, Wake wake)
      : port_(std::move(port)),
        party_(std::make_shared<const TlsParty>(std::move(party))),
        protocols_(std::move(protocols)),
        admitted_(std::move(admitted)),
        options_(std::move(options)),
        wake_(std::move(wake)) {}

  ~ThreadedGate() override {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
      for (const Socket* socket : in_handshake_) ::shutdown(socket->get(), SHUT_RDWR);
    }
    wake_.notify();
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  Status launch() {
    FS_TRY(listen_at(port_));
    try {
      threads_.emplace_back([this] { watch(); });
      for (int i = 0; i < options_.threads; i++) threads_.emplace_back([this] { serve(); });
    } catch (const std::system_error& error) {
      return Error{ErrorCode::kResourceExhausted,
                   std::string("cannot start a thread: ") + error.what(), port_.endpoint,
                   "allow this process more threads (ulimit -u)"};
    }
    return {};
  }

  int port() const override { return port_.port; }
  const std::string& endpoint() const override { return port_.endpoint; }
  Counters counters() const override {
    const std::lock_guard lock(mutex_);
    return counters_;
  }
  void renew(TlsParty party) override {
    auto renewed = std::make_shared<const TlsParty>(std::move(party));
    const std::lock_guard lock(mutex_);
    party_.swap(renewed);
  }

 private:
  // The thread that watches the port ------------------------------------------------------------

  void watch() {
    Nanoseconds refused_until{0};  // the system had no descriptor left: let some be closed
    while (!stopped()) {
      std::vector<pollfd> waiting{{wake_.fd(), POLLIN, 0}, {port_.socket.get(), POLLIN, 0}};
      if (now() < refused_until) waiting[1].fd = -1;
      // poll() would not wait for the rest of what has begun: that is looked at now and then.
      for (const Stranger& stranger : silent_)
        waiting.push_back({stranger.begun ? -1 : stranger.socket.get(), POLLIN, 0});
      ::poll(waiting.data(), waiting.size(), nap(refused_until));
      // The list only grows below: the answers are those of its first entries.
      look_at_silent(std::span(waiting).subspan(2));
      if ((waiting[1].revents & POLLIN) != 0 && !take_some()) refused_until = now() + kBreath;
    }
    silent_.clear();
  }

  int nap(Nanoseconds refused_until) const {
    Nanoseconds until = now() + seconds(1);
    if (refused_until > now()) until = std::min(until, refused_until);
    for (const Stranger& stranger : silent_) {
      until = std::min(until, stranger.since + options_.timeout);
      if (stranger.begun) until = std::min<Nanoseconds>(until, now() + kLook);
    }
    const auto ms = std::chrono::ceil<std::chrono::milliseconds>(until - now()).count();
    return static_cast<int>(std::clamp<int64_t>(ms, 1, 1000));
  }

  /// Accepts all who wait at the port; false when the system refuses.
  bool take_some() {
    while (true) {
      sockaddr_storage address{};
      socklen_t size = sizeof address;
      Socket socket(::accept4(port_.socket.get(), reinterpret_cast<sockaddr*>(&address), &size,
                              SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (socket.get() < 0) {
        if (errno == EAGAIN) return true;
        if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO) continue;
        count(&Counters::accept_errors);
        return false;
      }
      count(&Counters::accepted);
      const int one = 1;
      ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      if (silent_.size() + ready_count() >= static_cast<size_t>(options_.most_waiting))
        count(&Counters::turned_away);
      else
        silent_.push_back({std::move(socket), text_of(address), now()});
    }
  }

  /// Lets those who have begun a handshake go on, and closes who never will.
  void look_at_silent(std::span<const pollfd> answers) {
    auto at = silent_.begin();
    for (const pollfd& answer : answers) {
      Stranger& stranger = *at;
      const bool look = stranger.begun || answer.revents != 0;
      const FirstRecord record =
          look ? look_at_first_record(stranger.socket.get()) : FirstRecord::kPartly;
      const bool late = now() - stranger.since >= options_.timeout;
      if (record == FirstRecord::kPartly && !late) {
        stranger.begun = look;
        ++at;
        continue;
      }
      if (record == FirstRecord::kWhole) {
        const std::lock_guard lock(mutex_);
        ready_.push_back(std::move(stranger));
        changed_.notify_one();
      } else {
        refuse(&Counters::failed,
               {ErrorCode::kUnavailable, late ? "has not begun a handshake" : "speaks no TLS",
                stranger.endpoint, ""});
      }
      at = silent_.erase(at);
    }
  }

  size_t ready_count() const {
    const std::lock_guard lock(mutex_);
    return ready_.size();
  }
  bool stopped() const {
    const std::lock_guard lock(mutex_);
    return stopped_;
  }

  // The threads that shake hands ----------------------------------------------------------------

  void serve() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stopped_ || !ready_.empty(); });
      if (stopped_) return;
      Stranger stranger = std::move(ready_.front());
      ready_.pop_front();
      // A second descriptor, with which to cut the handshake when the gate closes: the first one
      // may have been closed, and its number given to another, by then.
      const Socket cut(::fcntl(stranger.socket.get(), F_DUPFD_CLOEXEC, 0));
      const auto entry = in_handshake_.insert(in_handshake_.end(), &cut);
      const bool crowded = in_handshake_.size() * 2 > static_cast<size_t>(options_.threads);
      const auto party = party_;
      lock.unlock();
      const auto open = offered(stranger.socket, true), closed = offered(stranger.socket, false);
      auto made = party->accept(std::move(stranger.socket), stranger.endpoint, closed, open,
                                crowded ? options_.timeout / 5 : options_.timeout);
      lock.lock();
      in_handshake_.erase(entry);
      if (stopped_) return;
      lock.unlock();
      hand_over(std::move(made), stranger.endpoint);
      lock.lock();
    }
  }

  std::vector<std::string> offered(const Socket& socket, bool open) const {
    std::vector<std::string> names;
    for (const Protocol& protocol : protocols_)
      if (protocol.open == open && (!protocol.offered_to || protocol.offered_to(socket)))
        names.push_back(protocol.name);
    return names;
  }

  void hand_over(Result<TlsConnection> made, const std::string& endpoint) {
    if (!made.ok()) return refuse(&Counters::failed, made.error());
    if (made->claim && admitted_) {
      Status let_in = admitted_(*made->claim);
      if (!let_in.ok()) {
        Error why = std::move(let_in).error();
        if (why.where.empty()) why.where = made->stream->peer();
        return refuse(&Counters::not_admitted, why);
      }
    }
    const auto asked_for =
        std::find_if(protocols_.begin(), protocols_.end(),
                     [&](const Protocol& protocol) { return protocol.name == made->protocol; });
    FS_CHECK(asked_for != protocols_.end());  // TLS offered no others
    count(&Counters::handed_over);
    asked_for->handler(std::move(*made));
  }

  void count(uint64_t Counters::*which) {
    const std::lock_guard lock(mutex_);
    counters_.*which += 1;
  }

  void refuse(uint64_t Counters::*which, const Error& why) {
    count(which);
    {
      const std::lock_guard lock(mutex_);
      if (now() - last_logged_ < seconds(1)) return;
      last_logged_ = now();
    }
    options_.log.info("refused a connection: " + why.message());
  }

  BoundPort port_;
  std::shared_ptr<const TlsParty> party_;
  const std::vector<Protocol> protocols_;
  const Admitted admitted_;
  const Options options_;
  Wake wake_;
  std::list<Stranger> silent_;  // of the watching thread

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Stranger> ready_;
  std::list<const Socket*> in_handshake_;
  Counters counters_;
  Nanoseconds last_logged_{-seconds(1)};
  bool stopped_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

Result<std::unique_ptr<Gate>> Gate::start(BoundPort port, TlsParty party,
                                          std::vector<Protocol> protocols, Admitted admitted,
                                          Options options) {
  FS_CHECK(options.threads > 0 && options.most_waiting > 0);
  FS_ASSIGN(Wake wake, Wake::create());
  auto gate =
      std::make_unique<ThreadedGate>(std::move(port), std::move(party), std::move(protocols),
                                     std::move(admitted), std::move(options), std::move(wake));
  FS_TRY(gate->launch());
  return std::unique_ptr<Gate>(std::move(gate));
}

}  // namespace fastserve
