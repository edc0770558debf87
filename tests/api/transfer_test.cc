// Models between two stores over a connection, and what is asked of a cluster.
#include <sys/socket.h>

#include <thread>

#include "../store/fixture.h"
#include "api/compression_text.h"
#include "api/duty_request.h"
#include "api/model_transfer.h"
#include "net/document_stream.h"

using namespace fastserve;
using namespace fastserve::testing;

namespace {

std::pair<std::unique_ptr<Stream>, std::unique_ptr<Stream>> connected() {
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
  return {plain_stream(Socket(ends[0]), "the sender"),
          plain_stream(Socket(ends[1]), "the receiver")};
}

/// Sends a version while `receive` has the other end.
struct Sent {
  Sent(Store& store, const ModelRef& ref) : model(store.send(ref).value()) {}
  template <class Receive>
  void to(const Receive& receive) {
    auto [ours, theirs] = connected();
    std::thread sender([&, stream = ours.get()] {
      TransferHooks hooks;
      hooks.progress = [&](double fraction) { last = fraction; };
      result = send_model(*stream, *model, hooks);
    });
    receive(*theirs);
    theirs = nullptr;
    sender.join();
  }
  std::unique_ptr<OutgoingModel> model;
  Result<ModelRef> result = Error{};
  double last = -1;
};

const auto as_it_is = [](ModelListing& listing) -> Result<ReceiveAs> {
  return ReceiveAs{listing.ref.name, listing.ref.version};
};

struct Stores {
  Folder here, there;
  std::unique_ptr<Store> from = open_store(here.path() / "store"),
                         to = open_store(there.path() / "store");
};

}  // namespace

TEST_CASE("a model goes over a connection, and both ends say what it has become") {
  Stores stores;
  const ModelBundle model = random_model({1, 2, 3});
  Sent sent(*stores.from, publish(*stores.from, "poems", model));
  double progress = 0;
  sent.to([&](Stream& stream) {
    TransferHooks hooks;
    hooks.progress = [&](double fraction) { progress = fraction; };
    const auto made = receive_model(
        stream, *stores.to,
        [](ModelListing& listing) -> Result<ReceiveAs> {
          listing.about.lineage.details.set("job", "1a2b3c4d");
          return ReceiveAs{"verses", 0};
        },
        hooks);
    REQUIRE(made.ok());
    CHECK(made->text() == "verses@1");
  });
  REQUIRE(sent.result.ok());
  CHECK(sent.result->text() == "verses@1");
  CHECK(sent.last == 1);
  CHECK(progress == 1);
  const auto stored = stores.to->open_model({"verses"});
  REQUIRE(stored.ok());
  check_same(model, stored->bundle);
  CHECK(stored->lineage.details.find("job")->as_string() == "1a2b3c4d");
}

TEST_CASE("a connection that breaks costs only what was under way") {
  Stores stores;
  const ModelRef ref = publish(*stores.from, "poems", random_model({1, 2, 3, 4, 5, 6}, 100'000));
  Sent first(*stores.from, ref);
  first.to([&](Stream& stream) {
    CancelFlag cut;
    TransferHooks hooks;
    hooks.cancel = &cut;
    hooks.progress = [&](double fraction) {
      if (fraction > 0.4) cut.raise();
    };
    CHECK(receive_model(stream, *stores.to, as_it_is, hooks).error().code == ErrorCode::kCancelled);
  });
  CHECK_FALSE(first.result.ok());
  uint64_t came = 0;
  Sent second(*stores.from, ref);
  second.to([&](Stream& stream) {
    auto counting = [&](ModelListing& listing) -> Result<ReceiveAs> {
      const auto incoming = stores.to->receive(listing, {"poems", 1});
      REQUIRE(incoming.ok());
      const auto pieces = listing.pieces();
      for (size_t i = 0; i < pieces.size(); i++)
        if ((*incoming)->wanted()[i]) came += pieces[i].bytes;
      return as_it_is(listing);
    };
    REQUIRE(receive_model(stream, *stores.to, counting, {}).ok());
  });
  REQUIRE(second.result.ok());
  CHECK(came > 0);
  CHECK(came < stores.from->show(ref)->bytes * 2 / 3);
  CHECK(stores.to->verify(ref, {}).ok());
}

TEST_CASE("a receiver that refuses is heard by the sender, with its own words") {
  Stores stores;
  Sent sent(*stores.from, publish(*stores.from, "poems", random_model({1})));
  sent.to([&](Stream& stream) {
    const auto made = receive_model(
        stream, *stores.to,
        [](ModelListing&) -> Result<ReceiveAs> {
          return Error{ErrorCode::kInvalidArgument, "is not wanted here", "poems", "keep it"};
        },
        {});
    CHECK_FALSE(made.ok());
  });
  REQUIRE_FALSE(sent.result.ok());
  CHECK(sent.result.error().message() == "poems: is not wanted here (keep it)");
}

TEST_CASE("a sender whose model is damaged says so, and nothing is stored") {
  Stores stores;
  Sent sent(*stores.from, publish(*stores.from, "poems", random_model({1, 2})));
  for (const auto& extent :
       std::filesystem::directory_iterator(stores.here.path() / "store" / "extents"))
    std::filesystem::resize_file(extent.path(), 64);
  sent.to([&](Stream& stream) {
    const auto made = receive_model(stream, *stores.to, as_it_is, {});
    REQUIRE_FALSE(made.ok());
    CHECK(made.error().code == ErrorCode::kCorrupt);
    CHECK(made.error().hint.find("restore") != std::string::npos);
  });
  CHECK_FALSE(sent.result.ok());
  CHECK(stores.to->list()->empty());
}

TEST_CASE("a stranger that announces too much, or says nothing that is a model, is refused") {
  Stores stores;
  const auto refused = [&](const std::string& bytes) {
    auto [ours, theirs] = connected();
    REQUIRE(
        send_bytes(*ours, std::as_bytes(std::span(bytes)), std::chrono::seconds(5), nullptr).ok());
    ours->shut_down();
    return receive_model(*theirs, *stores.to, as_it_is, {}).error().code;
  };
  CHECK(refused(std::string(8, '\xff')) == ErrorCode::kCorrupt);
  CHECK(refused(std::string("\4\0\0\0\0\0\0\0abcd", 12)) == ErrorCode::kCorrupt);
  CHECK(refused(std::string("\4\0\0\0", 4)) == ErrorCode::kUnavailable);
}

TEST_CASE("the text of a compression comes across, and garbage does not") {
  CompressionText text{"/data/texts", {{1, 2, 3}, {}, {-1}}, {{7}}};
  const std::string bytes = text.encode();
  const auto read = CompressionText::decode(bytes);
  REQUIRE(read.ok());
  CHECK(read->path == text.path);
  CHECK(read->held_out == text.held_out);
  CHECK(read->calibration == text.calibration);
  for (size_t size = 0; size < bytes.size(); size++)
    CHECK_FALSE(CompressionText::decode(std::string_view(bytes).substr(0, size)).ok());
  CHECK_FALSE(CompressionText::decode(bytes + "x").ok());
  CHECK_FALSE(CompressionText::decode(std::string(64, '\xff')).ok());
}

TEST_CASE("what is asked of a cluster to deploy and compress arrives as it was sent") {
  ClusterDeployRequest deploy;
  deploy.model = "poems@3";
  deploy.node = "gpu-1";
  deploy.deploy.address = "0.0.0.0";
  deploy.deploy.port = 8081;
  deploy.deploy.allow_remote = true;
  deploy.deploy.weights = WeightFormat::kInt8Row;
  deploy.deploy.kv = KvType::kFloat32;
  deploy.deploy.context_tokens = 4096;
  deploy.deploy.max_queue = 7;
  deploy.deploy.model_memory = uint64_t{20} << 30;
  const auto read = read_deploy_request(to_json(deploy));
  REQUIRE(read.ok());
  CHECK(to_json(*read) == to_json(deploy));
  CHECK(read->deploy.weights == WeightFormat::kInt8Row);
  CHECK(read->deploy.port == 8081);
  CHECK(read->deploy.model_memory == uint64_t{20} << 30);
  CHECK(read_deploy_request(Json::object({{"model", "a"}}))->deploy.port == 0);
  CHECK(read_deploy_request(Json::object({})).error().where == "deploy");
  const auto typo = read_deploy_request(Json::object({{"model", "a"}, {"prot", 1}}));
  CHECK(typo.error().hint == "did you mean port?");

  CompressRequest compress;
  compress.model = "poems";
  compress.to = "poems-int4";
  compress.data = "/data/other";
  compress.spec.weights = parse_weight_format("int4-g32").value();
  compress.spec.head = WeightFormat::kInt8Row;
  compress.spec.pruning = PruningKind::kNeurons;
  compress.spec.sparsity = 0.25;
  compress.spec.max_perplexity_increase = 0.01;
  compress.spec.max_perplexity = 9;
  compress.spec.max_bytes = 1 << 20;
  compress.spec.min_tokens_per_second = 10;
  const auto back = read_compress_request(to_json(compress));
  REQUIRE(back.ok());
  CHECK(to_json(*back) == to_json(compress));
  CHECK(back->spec.head == WeightFormat::kInt8Row);
  CHECK_FALSE(read_compress_request(Json::object({{"model", "a"}, {"weights", "int3"}})).ok());
  CHECK_FALSE(read_compress_request(Json::object({{"model", "a"}, {"prune", "magnitude"}})).ok());
}
