#include "store/store.h"

#include <atomic>
#include <fstream>
#include <thread>

#include "fixture.h"

namespace fastserve {
namespace {

using namespace fastserve::testing;

TEST_CASE("a published model comes back with the same documents, tensors and lineage") {
  const Folder folder;
  auto store = open_store(folder.path());
  ModelBundle bundle = random_model({1, 2, 3});
  auto tensors =
      std::make_shared<TensorMap>(*std::static_pointer_cast<const TensorMap>(bundle.tensors));
  tensors->add("scalar", random_tensor(9, {}));
  tensors->add("nothing", random_tensor(9, {0, 4}));
  tensors->add("matrix", random_tensor(9, {33, 1000, 17}));  // several blocks
  bundle.tensors = tensors;
  const Lineage lineage{"compress", "base@1", Json::object({{"perplexity", 4.5}})};
  const auto ref = store->publish("my_model", bundle, lineage);
  REQUIRE(ref.ok());
  CHECK(ref->text() == "my_model@1");

  for (int open = 0; open < 2; open++) {
    const auto model = store->open_model({"my_model"});
    REQUIRE(model.ok());
    check_same(bundle, model->bundle);
    CHECK(model->lineage.made_by == "compress");
    CHECK(model->lineage.parent == "base@1");
    CHECK(model->lineage.details == lineage.details);
    CHECK(model->ref == *ref);
    store.reset();
    store = open_store(folder.path());
  }
  CHECK(store->verify({"my_model"}, {}).ok());
  const auto model = store->open_model({"my_model"});
  CHECK(model->bundle.tensors->tensor("absent").error().code == ErrorCode::kNotFound);
}

TEST_CASE("a tensor larger than an extent is read back whole") {
  const Folder folder;
  auto store = open_store(folder.path());
  const ModelBundle bundle = random_model({1, 2}, 35 << 20);  // 140 MiB each: three pieces
  publish(*store, "large", bundle);
  CHECK(files_in(folder.path() / "extents") == 7);  // and one for the documents
  check_same(bundle, store->open_model({"large"})->bundle);
  CHECK(store->verify({"large"}, {}).ok());
}

TEST_CASE("versions share the bytes of tensors that did not change") {
  const Folder folder;
  auto store = open_store(folder.path());
  publish(*store, "a", random_model({1, 2, 3}, 50'000));
  const uint64_t once = bytes_in(folder.path() / "extents");
  publish(*store, "a", random_model({1, 2, 3}, 50'000));
  CHECK(bytes_in(folder.path() / "extents") == once);
  publish(*store, "b", random_model({1, 2, 4}, 50'000));
  CHECK(bytes_in(folder.path() / "extents") == once + 200'000);

  CHECK(store->show({"a", 1})->unique_bytes == 0);
  CHECK(store->show({"b", 1})->unique_bytes == 200'000);
  CHECK(store->show({"b", 1})->bytes == 600'000 + std::strlen(R"({"model_type": "llama"})"));
}

TEST_CASE("removing a version frees what nothing else uses, and only that") {
  const Folder folder;
  auto store = open_store(folder.path());
  publish(*store, "a", random_model({1, 2, 3}, 50'000));
  publish(*store, "b", random_model({1, 4}, 50'000));
  const auto freed = store->remove({"a"});
  REQUIRE(freed.ok());
  CHECK(*freed >= 390'000);  // two of three tensors, in whole pages
  CHECK(*freed <= 420'000);
  check_same(random_model({1, 4}, 50'000), store->open_model({"b"})->bundle);
  CHECK(store->verify({"b"}, {}).ok());
  REQUIRE(store->remove({"b"}).ok());
  CHECK(files_in(folder.path() / "extents") == 0);
  CHECK(store->list()->empty());
}

TEST_CASE("a version stays while someone reads it") {
  const Folder folder;
  auto store = open_store(folder.path());
  publish(*store, "a", random_model({1}));
  auto model = store->open_model({"a"});
  REQUIRE(model.ok());
  const StoredModel copy = *model;
  CHECK(store->remove({"a"}).error().code == ErrorCode::kUnavailable);
  REQUIRE(store->rename("a", "b").ok());
  CHECK(store->remove({"b"}).error().code == ErrorCode::kUnavailable);
  model->bundle.tensors.reset();
  CHECK(store->remove({"b"}).error().code == ErrorCode::kUnavailable);
  check_same(random_model({1}), copy.bundle);
  const_cast<StoredModel&>(copy).bundle.tensors.reset();
  CHECK(store->remove({"b"}).ok());
}

TEST_CASE("a name points to its newest version until it is moved") {
  const Folder folder;
  auto store = open_store(folder.path());
  publish(*store, "a", random_model({1}));
  publish(*store, "a", random_model({2}));
  Store::PublishOptions aside;
  aside.move_name = false;
  REQUIRE(store->publish("a", random_model({3}), {}, aside).ok());
  CHECK(store->open_model({"a"})->ref.version == 2);
  REQUIRE(store->point({"a", 1}).ok());
  CHECK(store->open_model({"a"})->ref.version == 1);
  CHECK(store->show({"a", 1})->current);
  CHECK_FALSE(store->show({"a", 2})->current);
  CHECK(store->point({"a", 9}).error().hint == "a has versions 1, 2, 3");
  REQUIRE(store->remove({"a", 1}).ok());
  CHECK(store->open_model({"a"})->ref.version == 3);
}

TEST_CASE("a version's number is not given twice") {
  const Folder folder;
  auto store = open_store(folder.path());
  publish(*store, "a", random_model({1}));
  publish(*store, "a", random_model({2}));
  REQUIRE(store->remove({"a"}).ok());
  CHECK(publish(*store, "a", random_model({3})).version == 3);
}

TEST_CASE("after a rename the old name's numbers are not given again, and lineage follows") {
  const Folder folder;
  auto store = open_store(folder.path());
  publish(*store, "a", random_model({1}));
  REQUIRE(store->publish("a", random_model({2}), {"compress", "a@1", {}}).ok());
  REQUIRE(store->publish("small", random_model({3}), {"compress", "a@2", {}}).ok());
  REQUIRE(store->publish("other", random_model({4}), {"compress", "ab@2", {}}).ok());
  REQUIRE(store->rename("a", "b").ok());
  CHECK(store->show({"b", 2})->lineage.parent == "b@1");
  CHECK(store->show({"small"})->lineage.parent == "b@2");
  CHECK(store->show({"other"})->lineage.parent == "ab@2");
  CHECK(store->show({"a"}).error().code == ErrorCode::kNotFound);
  CHECK(publish(*store, "a", random_model({5})).version == 3);
  check_same(random_model({1}), store->open_model({"b", 1})->bundle);
}

TEST_CASE("tags name versions and follow a rename") {
  const Folder folder;
  auto store = open_store(folder.path());
  publish(*store, "a", random_model({1}));
  publish(*store, "a", random_model({2}));
  REQUIRE(store->tag({"a", 1}, "best").ok());
  CHECK(store->open_model(*ModelRef::parse("a@best"))->ref.version == 1);
  REQUIRE(store->rename("a", "b").ok());
  CHECK(store->open_model(*ModelRef::parse("b@best"))->ref.version == 1);
  CHECK(store->show({"b", 1})->tags == std::vector<std::string>{"best"});
  CHECK(store->open_model({"a"}).error().code == ErrorCode::kNotFound);
  CHECK(store->open_model(*ModelRef::parse("b@worst")).error().code == ErrorCode::kNotFound);
  CHECK(store->tag({"b", 1}, "12").error().code == ErrorCode::kInvalidArgument);
  REQUIRE(store->untag("b", "best").ok());
  CHECK(store->untag("b", "best").error().code == ErrorCode::kNotFound);
  REQUIRE(store->tag({"b", 1}, "old").ok());
  REQUIRE(store->remove({"b", 1}).ok());
  CHECK(store->open_model(*ModelRef::parse("b@old")).error().code == ErrorCode::kNotFound);
}

TEST_CASE("a name that is taken is not renamed over, and renaming back works") {
  const Folder folder;
  auto store = open_store(folder.path());
  publish(*store, "a", random_model({1}));
  publish(*store, "b", random_model({2}));
  CHECK(store->rename("a", "b").error().code == ErrorCode::kAlreadyExists);
  REQUIRE(store->rename("a", "c").ok());
  REQUIRE(store->rename("c", "a").ok());
  check_same(random_model({1}), store->open_model({"a"})->bundle);
}

TEST_CASE("an unknown model's error names the models it may have meant") {
  const Folder folder;
  auto store = open_store(folder.path());
  CHECK(store->show({"shakespear"}).error().hint.find("the store is empty") == 0);
  publish(*store, "shakespeare", random_model({1}));
  publish(*store, "code", random_model({1}));
  const auto missing = store->show({"shakespear"});
  CHECK(missing.error().code == ErrorCode::kNotFound);
  CHECK(missing.error().hint == "did you mean shakespeare?");
  CHECK(store->show({"zzzzzzz"}).error().hint == "the store holds code, shakespeare");
}

TEST_CASE("names that could escape the catalogue are refused") {
  const Folder folder;
  auto store = open_store(folder.path());
  for (const char* name : {"", "a/b", "../a", ".a", "a b", "a@1", "ä", "-a"}) {
    CAPTURE(name);
    CHECK(store->publish(name, random_model({1}), {}).error().code == ErrorCode::kInvalidArgument);
  }
  CHECK_FALSE(ModelRef::parse(std::string(65, 'a')).ok());
  for (const char* text : {"a@", "a@0", "a@1@2", "@1", "a@99999999999999999999", "a@b/c"}) {
    CAPTURE(text);
    CHECK(ModelRef::parse(text).error().code == ErrorCode::kInvalidArgument);
  }
  CHECK(ModelRef::parse("Qwen2.5-0.5B@12")->version == 12);
  CHECK(ModelRef::parse("Qwen2.5-0.5B@12")->text() == "Qwen2.5-0.5B@12");
  CHECK(ModelRef::parse("a@v1")->tag == "v1");
}

TEST_CASE("a list tells what each version is") {
  const Folder folder;
  ManualClock clock;
  auto store = Store::open(folder.path(), {&clock});
  REQUIRE(store.ok());
  ModelBundle bundle = random_model({1}, 100);
  REQUIRE((*store)->publish("b", bundle, {}).ok());
  auto tensors = std::make_shared<TensorMap>();
  tensors->add("layers.0.weight.codes", Tensor{DType::kU8, {8, 50}, std::vector<std::byte>(400)});
  tensors->add("layers.0.weight.scales", random_tensor(1, {8, 4}));
  tensors->add("norm.weight", random_tensor(1, {8}));
  bundle.tensors = tensors;
  bundle.documents["config.json"] =
      R"({"model_type": "qwen2", "fastserve": {"weights": {"layers.0.weight": "int4-g32"}}})";
  REQUIRE((*store)->publish("a", bundle, {}).ok());
  const auto list = (*store)->list();
  REQUIRE(list->size() == 2);
  CHECK(list->at(0).ref.text() == "a@1");
  CHECK(list->at(0).architecture == "qwen2");
  CHECK(list->at(0).weight_format == "int4-g32");
  CHECK(list->at(0).parameters == 808);
  CHECK(list->at(0).created_unix == clock.unix_seconds());
  CHECK(list->at(1).architecture == "llama");
  CHECK(list->at(1).weight_format == "f32");
  CHECK(list->at(1).parameters == 100);
}

TEST_CASE("a cancelled publish leaves nothing") {
  const Folder folder;
  auto store = open_store(folder.path());
  CancelFlag cancel;
  Store::PublishOptions options;
  options.cancel = &cancel;
  options.progress = [&](double done) {
    if (done > 0.5) cancel.raise();
  };
  const auto result = store->publish("a", random_model({1, 2, 3, 4}), {}, options);
  CHECK(result.error().code == ErrorCode::kCancelled);
  CHECK(store->list()->empty());
  CHECK(files_in(folder.path() / "extents") == 0);
  CHECK(files_in(folder.path() / "tmp") == 0);
}

TEST_CASE("a second store on the same folder is refused") {
  const Folder folder;
  auto store = open_store(folder.path());
  const auto second = Store::open(folder.path());
  REQUIRE_FALSE(second.ok());
  CHECK(second.error().code == ErrorCode::kUnavailable);
  CHECK(second.error().what.find(std::to_string(::getpid())) != std::string::npos);
  store.reset();
  CHECK(Store::open(folder.path()).ok());
}

TEST_CASE("beside the process that has the store another can look at names, and do no more") {
  const Folder folder;
  auto store = open_store(folder.path());
  publish(*store, "a", random_model({1}));
  Store::Options options;
  options.glance = true;
  for (uint64_t version = 1; version <= 3; version++) {
    auto glance = Store::open(folder.path(), options);
    if (!glance.ok()) FAIL(glance.error().message());
    CHECK((*glance)->list()->size() == version);
    CHECK((*glance)->show({"a"})->ref.version == version);
    CHECK((*glance)->show({"b"}).error().code == ErrorCode::kNotFound);
    for (const Error& error :
         {(*glance)->publish("a", random_model({9}), {}).error(),
          (*glance)->open_model({"a"}).error(), (*glance)->remove({"a"}).error(),
          (*glance)->tag({"a"}, "t").error(), (*glance)->verify({"a"}, {}).error()})
      CHECK(error.code == ErrorCode::kUnavailable);
    publish(*store, "a", random_model({version + 1}));  // the other goes on undisturbed
  }
  CHECK(store->verify({"a", 4}, {}).ok());
  store.reset();
  CHECK(open_store(folder.path())->list()->size() == 4);
}

TEST_CASE("a store of a newer format, and a folder that is no store, are refused") {
  const Folder folder;
  open_store(folder.path());
  std::ofstream(folder.path() / "format") << "fastserve store, format 2\n";
  const auto newer = Store::open(folder.path());
  CHECK(newer.error().code == ErrorCode::kUnsupported);
  CHECK(newer.error().hint.find("newer fastserve") != std::string::npos);
  std::ofstream(folder.path() / "format") << "gibberish";
  CHECK(Store::open(folder.path()).error().code == ErrorCode::kCorrupt);

  const Folder other;
  std::ofstream(other.path() / "thesis.tex") << "years of work";
  const auto refused = Store::open(other.path());
  CHECK(refused.error().code == ErrorCode::kInvalidArgument);
  CHECK(refused.error().what.find("thesis.tex") != std::string::npos);
}

TEST_CASE("readers, publishers and removers share a store") {
  const Folder folder;
  auto store = open_store(folder.path());
  publish(*store, "shared", random_model({1, 2, 3}));
  std::vector<std::thread> threads;
  std::atomic<int> failures{0};
  for (uint64_t t = 0; t < 4; t++)
    threads.emplace_back([&, t] {
      const std::string name = "own-" + std::to_string(t);
      for (uint64_t i = 0; i < 5; i++) {
        const ModelBundle bundle = random_model({1, 100 * t + i});  // shares a tensor with all
        if (!store->publish(name, bundle, {}).ok()) failures++;
        const auto model = store->open_model({"shared"});
        if (!model.ok() || !model->bundle.tensors->tensor("layers.2.weight").ok()) failures++;
        if (!store->verify({name}, {}).ok() || !store->remove({name, i + 1}).ok()) failures++;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(failures == 0);
  CHECK(store->list()->size() == 1);
  CHECK(store->verify({"shared"}, {}).ok());
}

}  // namespace
}  // namespace fastserve
