#include <doctest/doctest.h>
#include <poll.h>

#include "net/tls_stream.h"
#include "tests/net/lane_fixture.h"

using namespace fastserve;

namespace {

std::vector<unsigned char> from_hex(const std::string& hex) {
  std::vector<unsigned char> bytes;
  for (size_t i = 0; i < hex.size(); i += 2)
    bytes.push_back(static_cast<unsigned char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

RecordSuite aes128() { return {EVP_aes_128_gcm(), EVP_sha256()}; }

RecordKey key_of(unsigned char secret, RecordKey::Use use) {
  return RecordKey::create(aes128(), TrafficSecret(std::vector<unsigned char>(32, secret)), use, 0)
      .value();
}

std::vector<std::byte> sealed(RecordKey& key, RecordType type, std::span<const std::byte> content) {
  std::vector<std::byte> record(content.size() + kRecordExtra);
  FS_CHECK(key.seal(type, {&content, 1}, content.size(), record.data()).ok());
  return record;
}

std::vector<std::byte> bytes_of(std::initializer_list<int> values) {
  std::vector<std::byte> bytes;
  for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

/// A stream, and what its peer would use: the raw socket and both keys.
struct Lone {
  SocketPair pair;
  RecordKey sealing = key_of(1, RecordKey::Use::kSeal), opening = key_of(2, RecordKey::Use::kOpen);
  std::unique_ptr<Stream> stream = tls_stream(std::move(pair.a), key_of(2, RecordKey::Use::kSeal),
                                              key_of(1, RecordKey::Use::kOpen), "the peer");

  void peer_sends(const std::vector<std::byte>& bytes) {
    FS_CHECK(::send(pair.b.get(), bytes.data(), bytes.size(), 0) ==
             static_cast<ssize_t>(bytes.size()));
  }
  std::vector<std::byte> peer_receives(size_t n) {
    std::vector<std::byte> bytes(n);
    FS_CHECK(::recv(pair.b.get(), bytes.data(), n, MSG_WAITALL) == static_cast<ssize_t>(n));
    return bytes;
  }
  Result<Moved> read(std::vector<std::byte>& into) { return stream->read(into); }
};

/// Moves all of `bytes` from one stream to the other, in pieces cut by `rng`.
std::vector<std::byte> carry(Stream& from, Stream& to, const std::vector<std::byte>& bytes,
                             Rng& rng) {
  std::vector<std::span<const std::byte>> parts;
  for (size_t at = 0; at < bytes.size();) {
    const size_t n = std::min<size_t>(bytes.size() - at, 1 + rng.below(40'000));
    parts.push_back(std::span(bytes).subspan(at, n));
    at += n;
  }
  std::vector<std::byte> got;
  std::span<std::span<const std::byte>> left = parts;
  while (got.size() < bytes.size()) {
    size_t moved = left.empty() ? 0 : from.write(left)->bytes;
    for (; moved > 0; left = left.front().empty() ? left.subspan(1) : left) {
      const size_t n = std::min(moved, left.front().size());
      left.front() = left.front().subspan(n);
      moved -= n;
    }
    std::vector<std::byte> room(1 + rng.below(100'000));
    const Moved came = to.read(room).value();
    got.insert(got.end(), room.begin(), room.begin() + static_cast<std::ptrdiff_t>(came.bytes));
  }
  return got;
}

}  // namespace

TEST_CASE("a record of the specification's sample connection is sealed and opened as it says") {
  // RFC 8448, section 3: the client's application data.
  const auto secret = from_hex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5");
  const auto record = from_hex(
      "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a2044"
      "1e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4");
  auto opening =
      RecordKey::create(aes128(), TrafficSecret(secret), RecordKey::Use::kOpen, 0).value();
  auto sealing =
      RecordKey::create(aes128(), TrafficSecret(secret), RecordKey::Use::kSeal, 0).value();
  std::vector<std::byte> content(record.size() - kRecordExtra);
  const auto opened = opening.open(std::as_bytes(std::span(record)), content.data());
  REQUIRE(opened.ok());
  CHECK(opened->type == RecordType::kData);
  CHECK(opened->bytes == 50);
  for (size_t i = 0; i < 50; i++) CHECK(content[i] == static_cast<std::byte>(i));
  const auto made = sealed(sealing, RecordType::kData, content);
  CHECK(std::equal(made.begin(), made.end(), std::as_bytes(std::span(record)).begin()));
}

TEST_CASE("a stream under TLS carries any bytes in any pieces, over many changes of its key") {
  for (const uint64_t records_per_key : {uint64_t{1}, uint64_t{7}, uint64_t{1} << 24}) {
    SocketPair pair;
    using Use = RecordKey::Use;
    const auto a = tls_stream(std::move(pair.a), key_of(1, Use::kSeal), key_of(2, Use::kOpen), "b",
                              records_per_key);
    const auto b = tls_stream(std::move(pair.b), key_of(2, Use::kSeal), key_of(1, Use::kOpen), "a",
                              records_per_key);
    Rng rng(records_per_key);
    for (const size_t size : {1, 88, 16'384, 16'385, 1'000'003}) {
      const auto bytes = noise(size, size);
      CHECK(carry(*a, *b, bytes, rng) == bytes);
      CHECK(carry(*b, *a, bytes, rng) == bytes);
    }
  }
}

TEST_CASE("a peer that asks for another key gets it with the next bytes") {
  Lone lone;
  lone.peer_sends(sealed(lone.sealing, RecordType::kHandshake, bytes_of({24, 0, 0, 1, 1})));
  REQUIRE(lone.sealing.advance().ok());
  lone.peer_sends(sealed(lone.sealing, RecordType::kData, bytes_of({5})));
  std::vector<std::byte> into(10);
  CHECK(lone.read(into)->bytes == 1);
  CHECK(into[0] == std::byte{5});
  const auto word = bytes_of({9, 9});
  const std::span<const std::byte> part(word);
  CHECK(lone.stream->write({&part, 1})->bytes == 2);
  const auto update = lone.peer_receives(5 + kRecordExtra);
  CHECK(lone.opening.open(update, into.data())->type == RecordType::kHandshake);
  REQUIRE(lone.opening.advance().ok());
  CHECK(lone.opening.open(lone.peer_receives(2 + kRecordExtra), into.data())->bytes == 2);
  CHECK(into[1] == std::byte{9});
}

TEST_CASE("a record that was changed, repeated or left out ends the stream, and is not read") {
  for (const char* const harm : {"changed", "repeated", "left out"}) {
    CAPTURE(harm);
    Lone lone;
    auto first = sealed(lone.sealing, RecordType::kData, noise(100, 1));
    const auto second = sealed(lone.sealing, RecordType::kData, noise(100, 2));
    std::vector<std::byte> into(100);
    if (harm == std::string("changed")) {
      first[50] ^= std::byte{1};
      lone.peer_sends(first);
    } else if (harm == std::string("repeated")) {
      lone.peer_sends(first);
      CHECK(lone.read(into)->bytes == 100);
      lone.peer_sends(first);
    } else {
      lone.peer_sends(second);
    }
    const auto came = lone.read(into);
    REQUIRE_FALSE(came.ok());
    CHECK(came.error().code == ErrorCode::kCorrupt);
    CHECK(came.error().message().find("the peer") != std::string::npos);
  }
}

TEST_CASE("what is no record of TLS after its handshake is refused") {
  std::vector<std::byte> into(100);
  const auto verdict = [&](const std::vector<std::byte>& bytes) -> std::optional<ErrorCode> {
    Lone lone;
    lone.peer_sends(bytes);
    const auto came = lone.read(into);
    if (came.ok()) return std::nullopt;
    return came.error().code;
  };
  CHECK(verdict(bytes_of({22, 3, 3, 0, 40})) == ErrorCode::kCorrupt);
  CHECK(verdict(bytes_of({23, 3, 3, 0, 16})) == ErrorCode::kCorrupt);
  CHECK(verdict(bytes_of({23, 3, 3, 0x41, 1})) == ErrorCode::kCorrupt);
  CHECK(verdict(bytes_of({23, 3, 3})) == std::nullopt);  // the rest may come
  for (const auto& [type, content] : std::vector<std::pair<int, std::vector<std::byte>>>{
           {22, bytes_of({13, 0, 0, 0})}, {22, {}}, {24, bytes_of({1})}, {0, {}}}) {
    RecordKey key = key_of(1, RecordKey::Use::kSeal);
    CHECK(verdict(sealed(key, static_cast<RecordType>(type), content)) == ErrorCode::kCorrupt);
  }
}

TEST_CASE("padding is taken off, tickets are passed over, and an alert says why the peer ends") {
  Lone lone;
  const auto padded = bytes_of({7, 8, 23, 0, 0, 0});
  lone.peer_sends(sealed(lone.sealing, static_cast<RecordType>(0), padded));
  std::vector<std::byte> into(100);
  CHECK(lone.read(into)->bytes == 2);
  lone.peer_sends(sealed(lone.sealing, RecordType::kHandshake, bytes_of({4, 0, 0, 1, 0})));
  CHECK(lone.read(into)->bytes == 0);
  lone.peer_sends(sealed(lone.sealing, RecordType::kAlert, bytes_of({2, 80})));
  const auto came = lone.read(into);
  REQUIRE_FALSE(came.ok());
  CHECK(came.error().code == ErrorCode::kUnavailable);
  CHECK(came.error().message().find("internal error") != std::string::npos);
}

TEST_CASE(
    "a peer that ends the stream in good order has ended it, and a broken one has broken it") {
  std::vector<std::byte> into(100);
  Lone good;
  good.peer_sends(sealed(good.sealing, RecordType::kData, bytes_of({1})));
  good.peer_sends(sealed(good.sealing, RecordType::kAlert, bytes_of({1, 0})));
  CHECK(good.read(into)->bytes == 1);
  CHECK(good.read(into)->closed);
  Lone bad;
  bad.pair.b = Socket();
  CHECK(bad.read(into).error().code == ErrorCode::kUnavailable);
}
