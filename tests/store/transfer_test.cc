// Versions that go from one store to another.
#include "store/transfer.h"

#include "fixture.h"

using namespace fastserve;
using namespace fastserve::testing;

namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

/// Brings up to `most` of the wanted pieces; how many came.
size_t carry(OutgoingModel& from, IncomingModel& to, size_t most = SIZE_MAX) {
  size_t came = 0;
  const std::vector<bool> wanted = to.wanted();
  for (size_t i = 0; i < wanted.size() && came < most; i++) {
    if (!wanted[i]) continue;
    const auto bytes = from.piece(i);
    if (!bytes.ok()) FAIL(bytes.error().message());
    const Status put = to.put(i, bytes_of(*bytes));
    if (!put.ok()) FAIL(put.error().message());
    came++;
  }
  return came;
}

struct Stores {
  Folder here, there;
  std::unique_ptr<Store> from = open_store(here.path() / "store"),
                         to = open_store(there.path() / "store");

  std::unique_ptr<OutgoingModel> send(const ModelRef& ref) const {
    auto sent = from->send(ref);
    if (!sent.ok()) FAIL(sent.error().message());
    return std::move(*sent);
  }
  std::unique_ptr<IncomingModel> receive(const ModelListing& listing, const ReceiveAs& as) const {
    const auto read = ModelListing::decode(listing.encode());
    if (!read.ok()) FAIL(read.error().message());
    auto incoming = to->receive(*read, as);
    if (!incoming.ok()) FAIL(incoming.error().message());
    return std::move(*incoming);
  }
  void reopen() {
    to = nullptr;
    to = open_store(there.path() / "store");
  }
};

}  // namespace

TEST_CASE("a version arrives in another store whole, under its own number") {
  Stores stores;
  const ModelBundle model = random_model({1, 2, 3});
  publish(*stores.from, "poems", random_model({9}));
  const ModelRef ref = publish(*stores.from, "poems", model);
  const auto sent = stores.send(ref);
  const auto incoming = stores.receive(sent->listing(), {"poems", ref.version});
  carry(*sent, *incoming);
  const auto made = incoming->commit();
  REQUIRE(made.ok());
  CHECK(made->text() == "poems@2");
  const auto opened = stores.to->open_model({"poems"});
  REQUIRE(opened.ok());
  CHECK(opened->ref.text() == "poems@2");
  CHECK(opened->lineage.made_by == "train");
  check_same(model, opened->bundle);
  stores.reopen();
  CHECK(stores.to->verify({"poems", 2}, {}).ok());
}

TEST_CASE("a transfer that was cut off wants only the rest, also in a process of its own") {
  Stores stores;
  const ModelRef ref = publish(*stores.from, "poems", random_model({1, 2, 3, 4}));
  const auto sent = stores.send(ref);
  const size_t all = sent->listing().pieces().size();
  {
    const auto incoming = stores.receive(sent->listing(), {"poems", 1});
    CHECK(carry(*sent, *incoming, 3) == 3);
    CHECK_FALSE(incoming->commit().ok());
  }
  CHECK(stores.to->show({"poems"}).error().code == ErrorCode::kNotFound);
  stores.reopen();
  const auto incoming = stores.receive(sent->listing(), {"poems", 1});
  CHECK(carry(*sent, *incoming) == all - 3);
  REQUIRE(incoming->commit().ok());
  check_same(stores.from->open_model(ref)->bundle, stores.to->open_model(ref)->bundle);
  // And nothing is left over once it is removed.
  REQUIRE(stores.to->remove({"poems"}).ok());
  stores.reopen();
  CHECK(files_in(stores.there.path() / "store" / "extents") == 0);
}

TEST_CASE("what another model of the store holds is not wanted, unless the disk has lost it") {
  Stores stores;
  publish(*stores.to, "verses", random_model({1, 2}));
  const ModelRef ref = publish(*stores.from, "poems", random_model({1, 2, 3}));
  const auto sent = stores.send(ref);
  {
    const auto incoming = stores.receive(sent->listing(), {"poems"});
    CHECK(carry(*sent, *incoming) == 1);
    REQUIRE(incoming->commit().ok());
  }
  // Every byte of every extent is lost: all of it is wanted again, and mends both.
  for (const auto& extent :
       std::filesystem::directory_iterator(stores.there.path() / "store" / "extents"))
    std::filesystem::resize_file(extent.path(), 0);
  CHECK_FALSE(stores.to->verify({"verses"}, {}).ok());
  const auto incoming = stores.receive(sent->listing(), {"poems", 1});
  CHECK(carry(*sent, *incoming) == sent->listing().pieces().size());
  REQUIRE(incoming->commit().ok());
  CHECK(stores.to->verify({"verses"}, {}).ok());
  CHECK(stores.to->verify({"poems"}, {}).ok());
}

TEST_CASE("another model under the same number takes its place, and the same one costs nothing") {
  Stores stores;
  publish(*stores.to, "poems", random_model({7}));
  const ModelRef ref = publish(*stores.from, "poems", random_model({1}));
  const auto sent = stores.send(ref);
  {
    const auto held = stores.to->open_model({"poems", 1});
    const auto incoming = stores.receive(sent->listing(), {"poems", 1});
    carry(*sent, *incoming);
    CHECK(incoming->commit().error().code == ErrorCode::kUnavailable);
  }
  {
    const auto incoming = stores.receive(sent->listing(), {"poems", 1});
    CHECK(carry(*sent, *incoming) == 0);  // it came before
    REQUIRE(incoming->commit().ok());
  }
  check_same(stores.from->open_model(ref)->bundle, stores.to->open_model(ref)->bundle);
  const auto held = stores.to->open_model({"poems", 1});
  const auto incoming = stores.receive(sent->listing(), {"poems", 1});
  CHECK(carry(*sent, *incoming) == 0);
  CHECK(incoming->commit().ok());
  CHECK(stores.to->list()->size() == 1);
}

TEST_CASE("bytes that are not the piece's are refused") {
  Stores stores;
  const auto sent = stores.send(publish(*stores.from, "poems", random_model({1})));
  const auto incoming = stores.receive(sent->listing(), {"poems", 1});
  auto bytes = sent->piece(0);
  REQUIRE(bytes.ok());
  (*bytes)[0] ^= 1;
  CHECK(incoming->put(0, bytes_of(*bytes)).error().code == ErrorCode::kCorrupt);
  CHECK(incoming->wanted()[0]);
}

TEST_CASE("a model larger than the disk is refused with the figures before anything comes") {
  Stores stores;
  const auto sent = stores.send(publish(*stores.from, "poems", random_model({1})));
  ModelListing listing = sent->listing();
  ManifestEntry huge;
  huge.name = "huge";
  huge.dtype = DType::kU8;
  huge.shape = {int64_t{1} << 44};
  huge.bytes = uint64_t{1} << 44;
  for (uint64_t i = 0; i < huge.bytes / kPieceBytes; i++) huge.pieces.push_back({i, i});
  listing.manifest.entries.push_back(huge);
  const auto refused = stores.to->receive(listing, {"poems", 1});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kResourceExhausted);
  CHECK(refused.error().message().find("TiB") != std::string::npos);
}

TEST_CASE("a listing that contradicts itself is refused") {
  Stores stores;
  const ModelListing good =
      stores.send(publish(*stores.from, "poems", random_model({1, 2})))->listing();
  const auto refused = [](const ModelListing& listing, const char* why) {
    const auto read = ModelListing::decode(listing.encode());
    REQUIRE_FALSE(read.ok());
    CHECK(read.error().code == ErrorCode::kCorrupt);
    CHECK(read.error().message().find(why) != std::string::npos);
  };
  CHECK(ModelListing::decode(good.encode()).ok());
  ModelListing bad = good;
  bad.manifest.entries.push_back(bad.manifest.entries.front());
  refused(bad, "two parts of one name");
  bad = good;
  bad.manifest.entries.back().shape = {int64_t{1} << 40, int64_t{1} << 40};
  refused(bad, "more bytes than there are");
  bad = good;
  bad.manifest.entries.back().shape = {4};
  refused(bad, "another size than its shape");
  bad = good;
  bad.ref.version = 0;
  refused(bad, "names no version");
  const std::string whole = good.encode();
  for (size_t size = 0; size < whole.size(); size += 7)
    CHECK_FALSE(ModelListing::decode(std::string_view(whole).substr(0, size)).ok());
}
