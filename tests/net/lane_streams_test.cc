#include "net/lane_streams.h"

#include <doctest/doctest.h>

#include "base/json.h"
#include "net/document_stream.h"
#include "net/lane_hub.h"
#include "tests/net/lane_fixture.h"

using namespace fastserve;
using namespace std::chrono_literals;

namespace {

/// A stream from `peer`, which has said `text`, and the peer's end of it.
struct Dialled {
  Dialled(const std::string& peer, const std::string& text) {
    SocketPair pair;
    theirs = plain_stream(std::move(pair.a), "us");
    FS_CHECK(send_document(*theirs, text, steady_now() + 5s).ok());
    ours.stream = plain_stream(std::move(pair.b), peer + " (there:1)");
    ours.claim = NodeClaim{"cluster", peer, {}, 0};
  }
  std::unique_ptr<Stream> theirs;
  TlsConnection ours;
};

std::string words(const std::string& lane, int index, int count) {
  return Json::object({{"lane", lane}, {"index", index}, {"count", count}}).dump();
}
const std::string kOne(16, '1'), kTwo(16, '2');

}  // namespace

TEST_CASE("a lane is whole when its last stream is here, in whatever order they come") {
  LaneGathering gathering;
  std::vector<Dialled> dialled;
  for (const int index : {2, 0, 1}) dialled.emplace_back("a", words(kOne, index, 3));
  Dialled other("b", words(kOne, 0, 1));
  CHECK_FALSE(gathering.add(std::move(dialled[0].ours))->has_value());
  CHECK(gathering.add(std::move(other.ours)).value()->claim->node == "b");
  CHECK_FALSE(gathering.add(std::move(dialled[1].ours))->has_value());
  auto whole = gathering.add(std::move(dialled[2].ours)).value();
  REQUIRE(whole);
  CHECK(whole->claim->node == "a");
  CHECK(whole->more.size() == 2);
  CHECK(std::move(*whole).all_streams().size() == 3);
}

TEST_CASE("a lane wants more streams the longer the way is, and one over what is no network") {
  CHECK(streams_wanted(200us) == 1);
  CHECK(streams_wanted(2ms) == 2);
  CHECK(streams_wanted(40ms) == 4);
  CHECK(streams_wanted(10s) == 4);
  SocketPair pair;
  CHECK(streams_wanted(*plain_stream(std::move(pair.a), "here")) == 1);
}

TEST_CASE("a peer that begins another lane has given up the one before") {
  LaneGathering gathering;
  Dialled half("a", words(kOne, 0, 2)), first("a", words(kTwo, 0, 2)),
      second("a", words(kTwo, 1, 2));
  CHECK_FALSE(gathering.add(std::move(half.ours))->has_value());
  CHECK_FALSE(gathering.add(std::move(first.ours))->has_value());
  std::byte byte{};
  CHECK(half.theirs->read({&byte, 1})->closed);
  CHECK(gathering.add(std::move(second.ours))->has_value());
}

TEST_CASE("a stream that cannot be part of a lane is refused, and its peer named") {
  LaneGathering gathering;
  for (const std::string& text :
       {std::string("{}"), std::string("no json"), std::string("[]"), words("short", 0, 1),
        words(kOne, 1, 1), words(kOne, -1, 1), words(kOne, 0, 0), words(kOne, 0, 17)}) {
    Dialled dialled("a", text);
    const auto added = gathering.add(std::move(dialled.ours));
    REQUIRE_FALSE(added.ok());
    CHECK(added.error().code == ErrorCode::kCorrupt);
    CHECK(added.error().message().find("a (there:1)") != std::string::npos);
  }
  Dialled first("a", words(kOne, 0, 2)), again("a", words(kOne, 0, 2)),
      longer("a", words(kOne, 1, 3));
  CHECK(gathering.add(std::move(first.ours)).ok());
  CHECK(gathering.add(std::move(again.ours)).error().code == ErrorCode::kCorrupt);
  CHECK(gathering.add(std::move(longer.ours)).error().code == ErrorCode::kCorrupt);
}

TEST_CASE("a peer that does not say which lane it is for costs its time and no more") {
  LaneGathering gathering(20ms);
  SocketPair pair;
  TlsConnection silent;
  silent.stream = plain_stream(std::move(pair.a), "silent");
  CHECK(gathering.add(std::move(silent)).error().code == ErrorCode::kDeadlineExceeded);
}

TEST_CASE("a dialled lane of several streams carries tensors") {
  const LanePart whole{new_lane_name(), 0, 3};
  LaneGathering gathering;
  std::vector<std::unique_ptr<Stream>> left, right;
  for (LanePart part = whole; part.index < part.count; part.index++) {
    SocketPair pair;
    left.push_back(plain_stream(std::move(pair.a), "right"));
    REQUIRE(announce(*left.back(), part, steady_now() + 5s).ok());
    TlsConnection connection;
    connection.stream = plain_stream(std::move(pair.b), "left");
    if (auto lane = gathering.add(std::move(connection)).value())
      right = std::move(*lane).all_streams();
  }
  REQUIRE(right.size() == 3);
  Keeper at_a, at_b;
  const auto a = BulkLane::start(std::move(left), at_a, {}).value();
  const auto b = BulkLane::start(std::move(right), at_b, {}).value();
  const SharedBytes bytes = shared_noise(3'000'001, 1);
  a->send({1, 0, 0, 0}, {::fastserve::whole(bytes)}, 0);
  CHECK(at_b.wait_for({1, 0, 0, 0}) == *bytes);
}
