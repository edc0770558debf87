// What a peer with a valid certificate may send to CAF, past the guard: any bytes, as the side that
// calls or (an odd first byte) the one that answers. Whatever comes, the next peer is served.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <future>
#include <memory>

#include "actors/bits.h"
#include "actors/remoting.h"
#include "net/basp_guard.h"
#include "net/tunnel.h"

namespace fastserve {
namespace {

/// Everything that a message's members may be.
struct Everything {
  std::string text;
  std::vector<std::string> texts;
  Bits<double> number;
  std::vector<uint32_t> numbers;
  caf::strong_actor_ptr actor;
  bool yes = false;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Everything& e) {
  return f(e.text, e.texts, e.number, e.numbers, e.actor, e.yes);
}

struct Node {
  Node() {
    config.set("scheduler.max-threads", size_t{1});
    config.add_message_type<Everything>("fuzz.Everything");
    Remoting::configure(config);
    system.emplace(config);
    remoting.emplace(*system);
    front = system->spawn([](caf::event_based_actor* self) -> caf::behavior {
      self->set_default_handler(caf::drop);
      return {[](const Everything& e) { return e.text; },
              [](const std::string& text) { return text; }, [](uint64_t n) { return n; }};
    });
    FS_CHECK(remoting->publish(front).ok());
  }
  caf::actor_system_config config;
  std::optional<caf::actor_system> system;
  std::optional<Remoting> remoting;
  caf::actor front;
};

struct Meeting {
  Node node, friendly;
  caf::actor friends_view;
  std::vector<std::byte> self, front;  // as the corpus has to call them
  uint64_t inputs = 0;

  Meeting() {
    LocalPair pair = make_local_pair().value();
    FS_CHECK(node.remoting->adopt(plain_stream(std::move(pair.tunnel), "friend"), {}).ok());
    friends_view = friendly.remoting
                       ->join<caf::actor>(plain_stream(std::move(pair.speaker), "node"),
                                          std::chrono::minutes(1), {})
                       .value();
    std::vector<char> bytes;
    caf::binary_serializer sink(*node.system, bytes);
    caf::node_id id = node.system->node();
    FS_CHECK(!sink(id));
    for (size_t i = 8; i < bytes.size(); i++) self.push_back(static_cast<std::byte>(bytes[i]));
    for (int i = 7; i >= 0; i--) front.push_back(static_cast<std::byte>(node.front->id() >> 8 * i));
  }
  void check_friend() {
    caf::scoped_actor asker(*friendly.system);
    bool answered = false;
    asker->request(friends_view, std::chrono::minutes(1), std::string("hello"))
        .receive([&](const std::string& text) { answered = text == "hello"; }, [](caf::error&) {});
    FS_CHECK(answered);
  }
};

/// Files cannot know ids that are made when the program runs: they hold others in their places.
void replace_all(std::vector<std::byte>& bytes, const std::vector<std::byte>& what,
                 const std::vector<std::byte>& by) {
  for (auto at = bytes.begin();; at += static_cast<std::ptrdiff_t>(by.size())) {
    at = std::search(at, bytes.end(), what.begin(), what.end());
    if (at == bytes.end()) return;
    std::copy(by.begin(), by.end(), at);
  }
}

}  // namespace
}  // namespace fastserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fastserve;
  static Meeting& meeting = *new Meeting;  // for as long as the program runs
  if (size == 0) return 0;
  const auto* begin = reinterpret_cast<const std::byte*>(data);
  std::vector<std::byte> bytes(begin + 1, begin + size);
  std::vector<std::byte> their_self(24), their_front(8, std::byte{0xF0});
  their_self[0] = std::byte{1};
  replace_all(bytes, their_self, meeting.self);
  replace_all(bytes, their_front, meeting.front);

  LocalPair pair = make_local_pair().value();
  auto over = std::make_shared<std::promise<void>>();
  auto ended = over->get_future();
  auto stream = plain_stream(std::move(pair.tunnel), "fuzzer");
  for (size_t sent = 0; sent < bytes.size();) {  // small enough for the socket's buffer
    const ssize_t n =
        ::send(pair.speaker.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n <= 0) break;
    sent += static_cast<size_t>(n);
  }
  ::shutdown(pair.speaker.get(), SHUT_WR);
  if (data[0] % 2 == 0) {
    FS_CHECK(
        meeting.node.remoting->adopt(std::move(stream), [over](const Error&) { over->set_value(); })
            .ok());
    ended.wait();
  } else {
    (void)meeting.node.remoting->join<caf::actor>(std::move(stream), std::chrono::seconds(10), {});
  }
  if (++meeting.inputs % 32 == 0) meeting.check_friend();
  return 0;
}
