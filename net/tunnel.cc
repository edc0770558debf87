#include "net/tunnel.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>

#include "net/wake.h"

namespace fastserve {
namespace {

constexpr size_t kChunk = 64 << 10;  // bytes of one read

Nanoseconds now() { return std::chrono::steady_clock::now().time_since_epoch(); }

/// Bytes on their way, in order.
class Queue {
 public:
  std::span<const std::byte> waiting() const { return std::span(bytes_).subspan(begin_); }
  std::vector<std::byte>& end() { return bytes_; }
  void take(size_t n) {
    begin_ += n;
    if (begin_ == bytes_.size()) {
      bytes_.clear();
      begin_ = 0;
    } else if (begin_ >= kChunk) {
      bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(begin_));
      begin_ = 0;
    }
  }

 private:
  std::vector<std::byte> bytes_;
  size_t begin_ = 0;
};

class Pump final : public Tunnel {
 public:
  Pump(std::unique_ptr<Stream> stream, Socket local, std::unique_ptr<TunnelFilter> filter,
       Options options, Closed closed, Wake wake)
      : stream_(std::move(stream)),
        local_(std::move(local)),
        filter_(std::move(filter)),
        options_(options),
        closed_(std::move(closed)),
        wake_(std::move(wake)),
        chunk_(std::min(kChunk, options.buffer)) {}

  ~Pump() override {
    close({ErrorCode::kCancelled, "the tunnel was shut down", "", ""});
    if (thread_.joinable()) thread_.join();
  }

  Status launch() {
    try {
      thread_ = std::thread([this] { live(); });
    } catch (const std::system_error& error) {
      return Error{ErrorCode::kResourceExhausted,
                   std::string("cannot start a thread: ") + error.what(), stream_->peer(),
                   "allow this process more threads (ulimit -u)"};
    }
    return {};
  }

  void close(Error why) override {
    const std::lock_guard lock(mutex_);
    if (!asked_) asked_ = std::move(why);
    wake_.notify();
  }
  bool finished() const override { return finished_; }

 private:
  void live() {
    Error why = run();
    if (why.where.empty()) why.where = stream_->peer();
    stream_->shut_down();
    stream_.reset();
    local_ = Socket();
    filter_.reset();
    inward_ = outward_ = Queue();
    if (closed_) closed_(why);
    closed_ = nullptr;
    finished_ = true;
  }

  Error run() {
    last_heard_ = now();
    while (true) {
      if (auto why = asked()) return *why;
      moved_ = false;
      const Status pumped = pump();
      if (!pumped.ok()) return pumped.error();
      if (moved_) continue;
      if (stream_ended_ && inward_.waiting().empty())
        return {ErrorCode::kUnavailable, "has closed the connection", "", ""};
      if (local_ended_ && outward_.waiting().empty())
        return {ErrorCode::kCancelled, "the connection was ended on this side", "", ""};
      // A local side that reads nothing keeps us from listening: no fault of the peer's.
      if (!has_room(inward_) && !stream_ended_) last_heard_ = now();
      if (now() - last_heard_ > options_.silence)
        return {ErrorCode::kUnavailable,
                fmt::format("has said nothing for {:.1f} s",
                            std::chrono::duration<double>(options_.silence).count()),
                "", "see whether the node runs and the network carries"};
      sleep();
    }
  }

  std::optional<Error> asked() {
    const std::lock_guard lock(mutex_);
    return asked_;
  }

  bool has_room(const Queue& queue) const {
    return queue.waiting().size() + chunk_.size() <= options_.buffer;
  }

  Status pump() {
    read_wants_ = write_wants_ = Moved::Wants::kNothing;
    if (!stream_ended_ && has_room(inward_)) FS_TRY(listen());
    if (!inward_.waiting().empty()) FS_TRY(hand_over());
    if (stream_ended_) return {};  // a stream that has ended takes nothing either
    if (!local_ended_ && has_room(outward_)) FS_TRY(collect());
    if (!outward_.waiting().empty()) FS_TRY(send_off());
    return {};
  }

  /// Stream to queue.
  Status listen() {
    FS_ASSIGN(const Moved moved, stream_->read(chunk_));
    if (moved.closed) {
      stream_ended_ = true;
      return {};
    }
    read_wants_ = moved.wants;
    if (moved.bytes == 0) return {};
    moved_ = true;
    last_heard_ = now();
    const auto bytes = std::span<const std::byte>(chunk_).first(moved.bytes);
    if (filter_ != nullptr) return filter_->pass(bytes, inward_.end());
    inward_.end().insert(inward_.end().end(), bytes.begin(), bytes.end());
    return {};
  }

  /// Queue to local side.
  Status hand_over() {
    const auto bytes = inward_.waiting();
    const ssize_t sent =
        ::send(local_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR)) return {};
    // Nobody reads any more; what it had sent is still collected, until that ends too.
    if (sent < 0) inward_.take(bytes.size());
    if (sent > 0) inward_.take(static_cast<size_t>(sent));
    moved_ = moved_ || sent != 0;
    return {};
  }

  /// Local side to queue.
  Status collect() {
    std::vector<std::byte>& into = outward_.end();
    const size_t before = into.size();
    into.resize(before + chunk_.size());
    const ssize_t got = ::recv(local_.get(), into.data() + before, chunk_.size(), MSG_DONTWAIT);
    const int failure = errno;
    into.resize(before + (got > 0 ? static_cast<size_t>(got) : 0));
    if (got > 0) moved_ = true;
    if (got == 0 || (got < 0 && failure != EAGAIN && failure != EINTR)) local_ended_ = true;
    return {};
  }

  /// Queue to stream.
  Status send_off() {
    const std::span<const std::byte> bytes = outward_.waiting();
    FS_ASSIGN(const Moved moved, stream_->write(std::span(&bytes, 1)));
    write_wants_ = moved.wants;
    moved_ = moved_ || moved.bytes > 0;
    outward_.take(moved.bytes);
    return {};
  }

  void sleep() {
    const auto wants = [&](Moved::Wants what) {
      return read_wants_ == what || write_wants_ == what;
    };
    const auto events = [](bool in, bool out) {
      return static_cast<short>((in ? POLLIN : 0) | (out ? POLLOUT : 0));
    };
    pollfd waiting[3] = {
        {stream_->fd(), events(wants(Moved::Wants::kReadable), wants(Moved::Wants::kWritable)), 0},
        {local_.get(),
         events(!local_ended_ && !stream_ended_ && has_room(outward_), !inward_.waiting().empty()),
         0},
        {wake_.fd(), POLLIN, 0}};
    // What is not asked for reports its end all the same, for ever: leave it out.
    for (pollfd& one : waiting)
      if (one.events == 0) one.fd = -1;
    const auto nap = std::chrono::ceil<std::chrono::milliseconds>(options_.silence / 8);
    ::poll(waiting, 3, static_cast<int>(std::clamp<int64_t>(nap.count(), 1, 1000)));
    if (waiting[2].revents != 0) wake_.clear();
  }

  std::unique_ptr<Stream> stream_;
  Socket local_;
  std::unique_ptr<TunnelFilter> filter_;
  const Options options_;
  Closed closed_;
  Wake wake_;
  std::vector<std::byte> chunk_;

  Queue inward_, outward_;
  bool stream_ended_ = false, local_ended_ = false, moved_ = false;
  Moved::Wants read_wants_ = Moved::Wants::kNothing, write_wants_ = Moved::Wants::kNothing;
  Nanoseconds last_heard_{0};

  std::mutex mutex_;
  std::optional<Error> asked_;
  std::atomic<bool> finished_{false};
  std::thread thread_;
};

}  // namespace

Result<LocalPair> make_local_pair() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0)
    return LocalPair{Socket(ends[0]), Socket(ends[1])};
  return Error{ErrorCode::kResourceExhausted,
               std::string("cannot make a pair of sockets: ") + std::strerror(errno), "",
               "allow this process more open files (ulimit -n)"};
}

Result<std::unique_ptr<Tunnel>> Tunnel::start(std::unique_ptr<Stream> stream, Socket local,
                                              std::unique_ptr<TunnelFilter> filter, Options options,
                                              Closed closed) {
  FS_CHECK(options.buffer > 0);
  FS_ASSIGN(Wake wake, Wake::create());
  auto pump = std::make_unique<Pump>(std::move(stream), std::move(local), std::move(filter),
                                     options, std::move(closed), std::move(wake));
  FS_TRY(pump->launch());
  return std::unique_ptr<Tunnel>(std::move(pump));
}

}  // namespace fastserve
