#include "net/tunnel.h"

#include <doctest/doctest.h>
#include <poll.h>

#include <future>

#include "tests/net/lane_fixture.h"
#include "tests/thread_count.h"

using namespace fastserve;
using namespace std::chrono_literals;

namespace {

/// Takes everything, in pieces that are never what came; refuses the byte 0xFF.
class Fussy final : public TunnelFilter {
 public:
  Status pass(std::span<const std::byte> bytes, std::vector<std::byte>& through) override {
    for (const std::byte byte : bytes) {
      if (byte == std::byte{0xFF}) return Error{ErrorCode::kCorrupt, "sends 255", "", ""};
      held_.push_back(byte);
      if (held_.size() < 7) continue;
      through.insert(through.end(), held_.begin(), held_.end());
      held_.clear();
    }
    return {};
  }

 private:
  std::vector<std::byte> held_;
};

/// A tunnel between a network of which `far` is the other end, and a speaker at `near`.
struct Dug {
  explicit Dug(Tunnel::Options options = {}, std::unique_ptr<TunnelFilter> filter = nullptr) {
    SocketPair network;
    LocalPair local = make_local_pair().value();
    far = std::move(network.b);
    near = std::move(local.speaker);
    tunnel = Tunnel::start(plain_stream(std::move(network.a), "the peer"), std::move(local.tunnel),
                           std::move(filter), options,
                           [this](const Error& why) { closed.set_value(why); })
                 .value();
  }
  Error wait_for_end() { return closed.get_future().get(); }

  Socket far, near;
  std::promise<Error> closed;
  std::unique_ptr<Tunnel> tunnel;
};

void send_all(const Socket& to, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(to.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n < 0) {
      FS_CHECK(errno == EAGAIN);
      pollfd waiting{to.get(), POLLOUT, 0};
      ::poll(&waiting, 1, -1);
      continue;
    }
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

/// What comes until there are `size` bytes or the end.
std::vector<std::byte> receive(const Socket& from, size_t size) {
  std::vector<std::byte> bytes(size);
  size_t got = 0;
  while (got < size) {
    pollfd waiting{from.get(), POLLIN, 0};
    ::poll(&waiting, 1, -1);
    const ssize_t n = ::recv(from.get(), bytes.data() + got, size - got, 0);
    if (n < 0 && errno == EAGAIN) continue;
    if (n <= 0) break;
    got += static_cast<size_t>(n);
  }
  bytes.resize(got);
  return bytes;
}

bool readable(const Socket& socket, int ms) {
  pollfd waiting{socket.get(), POLLIN, 0};
  return ::poll(&waiting, 1, ms) == 1;
}

}  // namespace

TEST_CASE("a tunnel carries any amount both ways at once, in order") {
  Dug dug;
  const auto out = noise(5'000'003, 1), in = noise(3'000'001, 2);
  auto send_out = std::async(std::launch::async, [&] { send_all(dug.near, out); });
  auto send_in = std::async(std::launch::async, [&] { send_all(dug.far, in); });
  auto got_in = std::async(std::launch::async, [&] { return receive(dug.near, in.size()); });
  CHECK(receive(dug.far, out.size()) == out);
  CHECK(got_in.get() == in);
}

TEST_CASE("a tunnel takes no more than its buffers hold from who sends faster than is read") {
  for (const bool inward : {true, false}) {
    Dug dug({.buffer = 100'000});
    const Socket& from = inward ? dug.far : dug.near;
    const auto bytes = noise(64 << 10, 1);
    size_t sent = 0;
    int refused = 0;  // in a row: the tunnel's thread may only not have come round yet
    while (refused < 20) {
      const ssize_t n = ::send(from.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      refused = n > 0 ? 0 : refused + 1;
      if (n > 0)
        sent += static_cast<size_t>(n);
      else
        std::this_thread::sleep_for(1ms);
    }
    // The kernel's buffers of two pairs of sockets, and ours.
    CHECK(sent < 2'000'000);
    CHECK(receive(inward ? dug.near : dug.far, sent).size() == sent);
  }
}

TEST_CASE("who speaks through a tunnel is told when the peer goes, after all that it sent") {
  Dug dug;
  const auto bytes = noise(300'000, 1);
  auto sent = std::async(std::launch::async, [&] {
    send_all(dug.far, bytes);
    dug.far = Socket();
  });
  CHECK(receive(dug.near, bytes.size() + 1) == bytes);
  const Error why = dug.wait_for_end();
  CHECK(why.code == ErrorCode::kUnavailable);
  CHECK(why.message() == "the peer: has closed the connection");
}

TEST_CASE("what was sent before the local end closed still goes out") {
  Dug dug;
  const auto bytes = noise(300'000, 1);
  auto sent = std::async(std::launch::async, [&] {
    send_all(dug.near, bytes);
    dug.near = Socket();
  });
  CHECK(receive(dug.far, bytes.size() + 1) == bytes);
  CHECK(dug.wait_for_end().code == ErrorCode::kCancelled);
}

TEST_CASE("what a filter holds back does not pass, and what it refuses ends the tunnel") {
  Dug dug({}, std::make_unique<Fussy>());
  std::vector<std::byte> bytes(20, std::byte{1});
  send_all(dug.far, bytes);
  CHECK(receive(dug.near, 14).size() == 14);
  CHECK_FALSE(readable(dug.near, 20));
  bytes.back() = std::byte{0xFF};
  send_all(dug.far, bytes);
  const Error why = dug.wait_for_end();
  CHECK(why.message() == "the peer: sends 255");
  CHECK(receive(dug.far, 1).empty());
  receive(dug.near, 100);  // returns at the end
}

TEST_CASE("a peer that says nothing is given up after the time that was set") {
  Dug dug({.silence = 40ms});
  send_all(dug.near, noise(10, 1));  // that we speak is no sign of the peer's life
  const Error why = dug.wait_for_end();
  CHECK(why.code == ErrorCode::kUnavailable);
  CHECK(why.message().find("has said nothing for 0.0 s") != std::string::npos);
}

TEST_CASE("a tunnel closes for the first reason that it is given, and says so once") {
  const auto before = thread_ids();
  {
    Dug dug;
    dug.tunnel->close({ErrorCode::kInternal, "first", "", ""});
    dug.tunnel->close({ErrorCode::kInternal, "second", "", ""});
    CHECK(dug.wait_for_end().what == "first");
    CHECK(receive(dug.far, 1).empty());
    CHECK(receive(dug.near, 1).empty());
    while (!dug.tunnel->finished()) std::this_thread::yield();
  }
  {
    Dug dug;
    dug.tunnel.reset();
    CHECK(dug.wait_for_end().code == ErrorCode::kCancelled);
  }
  CHECK(threads_left_since(before) == 0);
}
