#include <doctest/doctest.h>
#include <poll.h>

#include "net/bulk_frame.h"
#include "net/bulk_inbox.h"
#include "net/bulk_outbox.h"
#include "net/chunk_hash.h"
#include "tests/net/lane_fixture.h"

using namespace fastserve;
using namespace std::chrono_literals;

namespace {

BulkLane::Options small() {
  BulkLane::Options options;
  options.chunk = 1000;
  options.window = 3;
  return options;
}

BulkFrame frame_of(uint64_t total, uint64_t offset = 0, uint64_t message = 0) {
  BulkFrame frame;
  frame.total = total;
  frame.offset = offset;
  frame.message = message;
  return frame;
}

/// A chunk as a peer would send it.
std::vector<std::byte> message_bytes(std::span<const std::byte> body, BulkFrame frame) {
  frame.kind = BulkFrame::Kind::kChunk;
  frame.length = static_cast<uint32_t>(body.size());
  if (frame.ends_message()) frame.turn = 1;
  if (frame.checksum == 0) frame.checksum = chunk_hash(std::array{body});
  const BulkFrame::Bytes header = frame.encode();
  std::vector<std::byte> bytes(header.size() + body.size());
  std::copy(body.begin(), body.end(), std::copy(header.begin(), header.end(), bytes.begin()));
  return bytes;
}

/// What a lane says of a peer that sends exactly these bytes.
Error verdict_on(std::span<const std::byte> bytes, BulkLane::Options options = {}) {
  SocketPair pair;
  Keeper keeper;
  std::vector<std::unique_ptr<Stream>> streams;
  streams.push_back(plain_stream(std::move(pair.a), "the peer"));
  const auto lane = BulkLane::start(std::move(streams), keeper, options).value();
  FS_CHECK(::send(pair.b.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(bytes.size()));
  ::shutdown(pair.b.get(), SHUT_WR);
  return keeper.wait_for_end();
}

}  // namespace

TEST_CASE("a message arrives as it was sent, whatever its size and however it is cut") {
  for (const int streams : {1, 3}) {
    LanePair lanes(streams, small());
    Rng rng(3);
    uint64_t key = 0;
    for (const size_t size : {0, 1, 999, 1000, 1001, 2000, 3001, 77'777, 3'000'000}) {
      const SharedBytes bytes = shared_noise(size, size);
      std::vector<BulkSource> parts;
      for (size_t at = 0; at < size;) {
        const size_t n = std::min<size_t>(size - at, rng.below(size) + 1);
        parts.push_back({std::span(*bytes).subspan(at, n), bytes});
        parts.push_back({});  // an empty part changes nothing
        at += n;
      }
      const BulkTag tag{1, 2, 3, key++};
      (key % 2 ? lanes.a : lanes.b)->send(tag, parts, 0);
      const auto got = (key % 2 ? lanes.at_b : lanes.at_a).wait_for(tag);
      REQUIRE(got);
      CHECK(*got == *bytes);
    }
  }
}

TEST_CASE("both ends of a lane may send at once") {
  LanePair lanes(2, small());
  std::vector<SharedBytes> sent;
  for (uint64_t i = 0; i < 40; i++) {
    sent.push_back(shared_noise(1 + 731 * i, i));
    lanes.a->send({0, 0, 0, i}, {whole(sent[i])}, 0);
    lanes.b->send({0, 0, 0, i}, {whole(sent[i])}, 0);
  }
  for (uint64_t i = 0; i < 40; i++) {
    CHECK(lanes.at_a.wait_for({0, 0, 0, i}) == *sent[i]);
    CHECK(lanes.at_b.wait_for({0, 0, 0, i}) == *sent[i]);
  }
  CHECK(lanes.a->counters().messages_received == 40);
  CHECK(lanes.a->queued_bytes() == 0);
}

TEST_CASE("an urgent message overtakes a long one that is under way") {
  BulkOutbox outbox;
  outbox.add({1, 0, 0, 0}, {whole(shared_noise(25, 1))}, 5);
  CHECK(outbox.next(10)->frame.tag.kind == 1);
  outbox.add({2, 0, 0, 0}, {whole(shared_noise(10, 2))}, 1);
  outbox.add({3, 0, 0, 0}, {whole(shared_noise(10, 3))}, 5);
  std::vector<std::pair<uint64_t, uint64_t>> rest;  // kind, offset
  while (auto chunk = outbox.next(10))
    rest.emplace_back(chunk->frame.tag.kind, chunk->frame.offset);
  CHECK(rest == std::vector<std::pair<uint64_t, uint64_t>>{{2, 0}, {1, 10}, {1, 20}, {3, 0}});
}

TEST_CASE("messages arrive in the order they were sent in, over however many streams") {
  for (const int streams : {1, 4}) {
    CAPTURE(streams);
    LanePair lanes(streams, small());
    std::vector<BulkTag> sent;
    Rng rng(5);
    for (uint64_t i = 0; i < 300; i++) {
      sent.push_back({i % 9 == 0 ? uint64_t{13} : 1, 0, 0, i});  // some are refused
      lanes.a->send(sent.back(), {whole(shared_noise(i % 3 == 0 ? 20'000 : rng.below(50), i))}, 0);
    }
    REQUIRE(lanes.at_b.wait_for(sent.back()));
    std::erase_if(sent, [](const BulkTag& tag) { return tag.kind == 13; });
    CHECK(lanes.at_b.order() == sent);
  }
}

TEST_CASE("a message that is whole waits for its turn") {
  Keeper keeper;
  BulkInbox inbox(keeper, {});
  const auto come = [&](uint64_t message, uint32_t turn) {
    BulkFrame frame = frame_of(0, 0, message);
    frame.tag.key = message;
    frame.turn = turn;
    const auto begun = inbox.begin(frame);
    if (begun.ok()) inbox.end(frame);
    return begun.ok() ? Status() : Status(begun.error());
  };
  CHECK(come(2, 3).ok());
  CHECK(come(1, 2).ok());
  CHECK(keeper.order().empty());
  CHECK(come(0, 1).ok());
  CHECK(keeper.order() == std::vector<BulkTag>{{0, 0, 0, 0}, {0, 0, 0, 1}, {0, 0, 0, 2}});
  for (const uint32_t wrong : {0u, 1u, 3u, 4u + 1024u, UINT32_MAX})
    CHECK(come(9, wrong).error().code == ErrorCode::kCorrupt);
}

TEST_CASE("a message that the receiver refuses is dropped, and the next one arrives") {
  LanePair lanes(1, small());
  const SharedBytes unwanted = shared_noise(5'000, 1), wanted = shared_noise(5'000, 2);
  lanes.a->send({13, 0, 0, 0}, {whole(unwanted)}, 0);
  lanes.a->send({1, 0, 0, 0}, {whole(wanted)}, 0);
  CHECK(lanes.at_b.wait_for({1, 0, 0, 0}) == *wanted);
  CHECK(lanes.b->counters().messages_refused == 1);
}

TEST_CASE("no more than the window is sent before the peer confirms") {
  SocketPair pair;
  Keeper keeper;
  std::vector<std::unique_ptr<Stream>> streams;
  streams.push_back(plain_stream(std::move(pair.a), "peer"));
  const auto lane = BulkLane::start(std::move(streams), keeper, small()).value();
  lane->send({}, {whole(shared_noise(100'000, 1))}, 0);
  const auto take = [&](uint32_t chunks) {
    std::vector<std::byte> bytes(chunks * (BulkFrame::kBytes + 1000));
    CHECK(::recv(pair.b.get(), bytes.data(), bytes.size(), MSG_WAITALL) ==
          static_cast<ssize_t>(bytes.size()));
    CHECK(lane->counters().bytes_sent <= 1000u * (chunks + 3));
  };
  take(3);
  pollfd more{pair.b.get(), POLLIN, 0};
  CHECK(::poll(&more, 1, 20) == 0);
  BulkFrame credit;
  credit.kind = BulkFrame::Kind::kCredit;
  credit.length = 2;
  const BulkFrame::Bytes bytes = credit.encode();
  CHECK(::send(pair.b.get(), bytes.data(), bytes.size(), 0) == BulkFrame::kBytes);
  take(2);
  CHECK(::poll(&more, 1, 20) == 0);
  CHECK(lane->queued_bytes() == 95'000);
}

TEST_CASE("bytes that changed on their way close the lane and are named") {
  BulkFrame frame = frame_of(100);
  frame.checksum = 12345;
  const Error error = verdict_on(message_bytes(noise(100, 1), frame));
  CHECK(error.code == ErrorCode::kCorrupt);
  CHECK(error.message().find("the peer: 100 bytes arrived changed") != std::string::npos);
}

TEST_CASE("a peer that breaks the format or a limit is refused") {
  const auto body = noise(100, 1);
  CHECK(verdict_on(noise(500, 2)).message().find("no frame") != std::string::npos);
  std::vector<std::byte> twice = message_bytes(body, frame_of(200));
  const std::vector<std::byte> again = twice;
  twice.insert(twice.end(), again.begin(), again.end());
  CHECK(verdict_on(twice).message().find("twice") != std::string::npos);
  CHECK(verdict_on(message_bytes(body, frame_of(50))).code == ErrorCode::kCorrupt);
  CHECK(verdict_on(message_bytes(body, frame_of(200, 150))).code == ErrorCode::kCorrupt);
  CHECK(verdict_on(message_bytes(body, frame_of(UINT64_MAX))).message().find("at most") !=
        std::string::npos);
  BulkFrame credit;
  credit.kind = BulkFrame::Kind::kCredit;
  credit.length = 1;
  CHECK(verdict_on(credit.encode()).message().find("confirmed what was not sent") !=
        std::string::npos);
  BulkLane::Options few;
  few.max_open = 3;
  std::vector<std::byte> many;
  for (uint64_t i = 0; i < 4; i++) {
    const auto begun = message_bytes(body, frame_of(200, 0, i));
    many.insert(many.end(), begun.begin(), begun.end());
  }
  CHECK(verdict_on(many, few).message().find("more than 3 messages") != std::string::npos);
}

TEST_CASE("a peer that leaves is noticed at both ends, and what was queued is let go") {
  LanePair lanes(2);
  const SharedBytes bytes = shared_noise(50'000'000, 1);
  lanes.b->send({}, {whole(bytes)}, 0);
  lanes.a.reset();
  CHECK(lanes.at_a.wait_for_end().code == ErrorCode::kCancelled);
  CHECK(lanes.at_b.wait_for_end().code == ErrorCode::kUnavailable);
  lanes.b->send({}, {whole(bytes)}, 0);  // says nothing more, keeps nothing
  lanes.b.reset();
  CHECK(bytes.use_count() == 1);
}

TEST_CASE("a peer that says nothing is given up after the time that was set") {
  SocketPair pair;
  Keeper keeper;
  BulkLane::Options options;
  options.silence = 30ms;
  std::vector<std::unique_ptr<Stream>> streams;
  streams.push_back(plain_stream(std::move(pair.a), "peer"));
  const auto lane = BulkLane::start(std::move(streams), keeper, options).value();
  const Error why = keeper.wait_for_end();
  CHECK(why.code == ErrorCode::kUnavailable);
  CHECK(why.message().find("has said nothing for 0.0 s") != std::string::npos);
}

TEST_CASE("two lanes with nothing to say keep each other alive") {
  BulkLane::Options options;
  options.silence = 1s;
  LanePair lanes(1, options);
  // Longer than the silence that would end it: what is proven is that the lane says it lives.
  pollfd nothing{-1, 0, 0};
  ::poll(&nothing, 1, 2500);
  const SharedBytes bytes = shared_noise(10, 1);
  lanes.a->send({}, {whole(bytes)}, 0);
  CHECK(lanes.at_b.wait_for({}) == *bytes);
}
