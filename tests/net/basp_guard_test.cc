#include "net/basp_guard.h"

#include <doctest/doctest.h>

#include "tests/net/basp_words.h"

using namespace fastserve;
using namespace fastserve::basp;

namespace {

using Peer = BaspGuard::Peer;

BaspGuard::Options options(Peer peer = Peer::kCaller) {
  BaspGuard::Options made;
  made.peer = peer;
  made.self = kSelf;
  made.message_types = {"fs.Work", "fs.Done"};
  return made;
}

struct Said {
  std::string verdict;  // empty: all is well
  Bytes through;
};

Said hear(const Bytes& bytes, const BaspGuard::Options& how = options(), size_t piece = SIZE_MAX) {
  BaspGuard guard(how);
  Said said;
  for (size_t at = 0; at < bytes.size(); at += std::min(piece, bytes.size() - at)) {
    const auto part = std::span(bytes).subspan(at, std::min(piece, bytes.size() - at));
    const Status passed = guard.pass(part, said.through);
    if (passed.ok()) continue;
    said.verdict = passed.error().what;
    return said;
  }
  return said;
}

/// What is said of a peer that has introduced itself and then says this.
std::string verdict(const Bytes& bytes, const BaspGuard::Options& how = options()) {
  const Said said = hear(hello() + bytes, how);
  CHECK(said.through.size() == (said.verdict.empty() ? (hello() + bytes).size() : hello().size()));
  return said.verdict;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("what a well-behaved caller says passes unchanged, however it is cut") {
  Bytes all = hello() + hello(kSelect) + message("@<>") + message("@<>+@i32+@str", Bytes(5000)) +
              message("@<>+fs.Work+@u64+fs.Done+bool", Bytes(77)) + plain_error() + monitor() +
              down() + heartbeat() + message("@<>+@str", Bytes(100'000));
  for (const size_t piece : {1, 3, 32, 33, 1000, 1 << 20}) {
    const Said said = hear(all, options(), piece);
    CHECK(said.verdict.empty());
    CHECK(said.through == all);
  }
}

TEST_CASE("what a well-behaved answerer says passes unchanged") {
  const Bytes all = answer() + message("@<>+@i32") + heartbeat();
  const Said said = hear(all, options(Peer::kAnswerer), 5);
  CHECK(said.verdict.empty());
  CHECK(said.through == all);
}

TEST_CASE("no byte of a header passes before the header is whole and sound") {
  for (size_t size = 1; size < BaspGuard::kHeaderBytes; size++) {
    Bytes begun = heartbeat();
    begun.resize(size);
    CHECK(hear(hello() + begun).through == hello());
  }
}

TEST_CASE("a peer has to introduce itself first, as the side that it is, and once") {
  CHECK(contains(hear(heartbeat()).verdict, "before it has introduced itself"));
  CHECK(contains(hear(message("@<>")).verdict, "before it has introduced itself"));
  CHECK(contains(hear(answer()).verdict, "wrong side"));
  CHECK(contains(hear(hello(), options(Peer::kAnswerer)).verdict, "wrong side"));
  CHECK(contains(hear(answer() + answer(), options(Peer::kAnswerer)).verdict, "again"));
  CHECK(contains(hear(hello() + hello(kSelect) + hello(kSelect)).verdict, "again"));
  CHECK(contains(verdict(hello()), "way of its own"));
  CHECK(contains(hear(hello(kSelect)).verdict, "way of its own"));
  Bytes other = hello(kSelect);
  other.back() ^= std::byte{1};
  CHECK(contains(verdict(other), "another node than before"));
}

TEST_CASE("a peer of another version of the protocol is refused by its version") {
  CHECK(
      contains(hear(answer(4), options(Peer::kAnswerer)).verdict, "version 4 of BASP, and not 3"));
}

TEST_CASE("a peer with our own id, or an id that is none, is refused") {
  CHECK(contains(hear(hello(0, kSelf)).verdict, "this very node"));
  Bytes strange = hello();
  strange[BaspGuard::kHeaderBytes + 7] ^= std::byte{1};
  CHECK(contains(hear(strange).verdict, "id of another kind"));
}

TEST_CASE("who has to know of a peer is asked before a byte of it passes, and may refuse") {
  BaspGuard::Options asking = options();
  int asked = 0;
  asking.met = [&](const BaspGuard::NodeId& node) -> Status {
    CHECK(node == kPeer);
    asked++;
    return Error{ErrorCode::kUnavailable, "not now", "", ""};
  };
  const Said said = hear(hello() + hello(kSelect), asking);
  CHECK(said.verdict == "not now");
  CHECK(said.through.empty());
  asking.met = [&](const BaspGuard::NodeId&) { return asked++, Status(); };
  CHECK(hear(hello() + hello(kSelect), asking).verdict.empty());
  CHECK(asked == 2);
}

TEST_CASE("messages for other nodes, for named actors, and of unknown kinds are refused") {
  CHECK(contains(verdict(header(3, 0, 100, 1, 5, 6)), "for another node"));
  CHECK(contains(verdict(header(2, 1, 100, 1, 5, 6)), "by a name"));
  for (const int operation : {7, 8, 100, 255})
    CHECK(contains(verdict(header(static_cast<uint8_t>(operation), 0, 0, 0, 0, 0)), "no message"));
  Bytes padded = heartbeat();
  padded[1] = std::byte{1};
  CHECK(contains(verdict(padded), "no message"));
}

TEST_CASE("headers that contradict themselves are refused") {
  for (const Bytes& bytes :
       {header(6, 0, 1, 0, 0, 0), header(6, 0, 0, 1, 0, 0), header(6, 0, 0, 0, 1, 0),
        header(6, 0, 0, 0, 0, 1), header(2, 0, 0, 1, 5, 6), header(2, 0, 10, 1, 5, 0),
        header(2, 0, 10, 1ULL << 61, 5, 6), header(2, 0, 10, 3ULL << 60 | 1, 5, 6),
        header(4, 0, 63, 0, 0, 6), header(4, 0, 64, 1, 0, 6), header(4, 0, 64, 0, 1, 6),
        header(5, 0, 64, 0, 5, 0), header(5, 0, 90, 0, 0, 0), header(5, 0, 90, 0, 5, 6),
        header(5, 0, 5000, 0, 5, 0)})
    CHECK(contains(verdict(bytes), "contradicts itself"));
}

TEST_CASE("a payload larger than its limit is refused before any of it has come") {
  BaspGuard::Options small = options();
  small.max_payload = 1000;
  CHECK(contains(verdict(header(2, 0, 1001, 1, 5, 6), small), "1001 bytes, and 1000 are allowed"));
  CHECK(contains(verdict(header(2, 0, UINT32_MAX, 1, 5, 6)), "8388608 are allowed"));
  CHECK(
      contains(hear(header(0, 0, 4097, 3, 0, 0), options(Peer::kAnswerer)).verdict, "4097 bytes"));
  CHECK(contains(hear(header(1, 0, 33, 0, 0, 0)).verdict, "33 bytes"));
}

TEST_CASE("a message of a type that is not allowed is refused by the type's name") {
  for (const std::string name : {"@exit", "@down", "@message", "@charbuf", "@group", "double",
                                 "fs.Wor", "fs.Work ", "@config_value"})
    CHECK(contains(verdict(message("@<>+" + name)), "sends a " + name + ","));
  CHECK(contains(verdict(message("@<>+@i32+@open_stream_msg")), "@open_stream_msg"));
  CHECK(contains(verdict(message("@<>+@error+@i32")), "sends a @error"));
  CHECK(contains(verdict(message("@<>+")), "without a type"));
  CHECK(contains(verdict(message("@<>+@i32+")), "without a type"));
  CHECK(contains(verdict(message("@i32")), "no message"));
  BaspGuard::Options linking = options();
  linking.message_types.insert("@strong_actor_ptr");
  CHECK(contains(verdict(message("@<>+@atom+@strong_actor_ptr"), linking), "links itself"));
}

TEST_CASE("a message whose beginning is malformed is refused") {
  CHECK(contains(verdict(raw_message(bytes_of({1}))), "by way of other actors"));
  CHECK(contains(verdict(raw_message(bytes_of({0, 0, 1}))), "no message"));
  CHECK(contains(verdict(raw_message(bytes_of({0, 0}))), "ends too soon"));
  CHECK(contains(verdict(raw_message(bytes_of({0, 0, 0, 5, '@'}))), "ends too soon"));
  CHECK(contains(verdict(raw_message(bytes_of({0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}))),
                 "names of types"));
  CHECK(contains(verdict(message("@<>+" + std::string(600, 'a'))), "604 bytes of names"));
}

TEST_CASE("an error that holds more than plain values is refused") {
  CHECK(verdict(plain_error("@<>+@str+@u8", bytes_of({2, 'h', 'i', 7}))).empty());
  CHECK(verdict(plain_error("@<>+@strvec", bytes_of({2, 1, 'a', 0}))).empty());
  for (const Bytes& bytes :
       {plain_error("@<>+@error"), plain_error("@<>+@message"),
        plain_error("@<>+@str", bytes_of({9, 'h'})), plain_error("@<>+@str", bytes_of({1, 'h', 1})),
        plain_error("", {}), plain_error("@<>", bytes_of({1})),
        plain_error("@<>+@strvec", bytes_of({0xFF, 0xFF, 0xFF, 0xFF, 0x0F, 1, 'a'}))})
    CHECK(contains(verdict(bytes), "may not be read"));
  CHECK(contains(verdict(plain_error("@<>+@str", Bytes(5000))), "more to check"));
}

TEST_CASE("an error that answers no request is refused: the actor that it is sent to would end") {
  CHECK(contains(verdict(plain_error("@<>", {}, 1)), "answers no request"));
}

TEST_CASE("a peer that speaks for another node is refused") {
  CHECK(contains(verdict(monitor(kSelf, kSelf)), "for another node"));
  CHECK(contains(verdict(monitor(kPeer, kPeer)), "for another node"));
  CHECK(contains(verdict(down(kThird)), "for another node"));
  CHECK(contains(verdict(down(kPeer, "@<>+@message")), "may not be read"));
}
