#include <fstream>

#include "fixture.h"
#include "store/store.h"

namespace fastserve {
namespace {

using namespace fastserve::testing;

void flip_bit(const Path& path, uint64_t at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(at));
  const int byte = file.get();
  file.seekp(static_cast<std::streamoff>(at));
  file.put(static_cast<char>(byte ^ 0x10));
}

TEST_CASE("a flipped bit is found by verify and by the first read, with its place") {
  const Folder folder;
  auto store = open_store(folder.path());
  publish(*store, "a", random_model({1, 2}, 600'000));  // 2.4 MB each
  const auto extent = *std::filesystem::directory_iterator(folder.path() / "extents");
  const uint64_t size = extent.file_size();
  flip_bit(extent.path(), size - 1000);  // the last block of the last tensor
  const auto model = store->open_model({"a"});
  REQUIRE(model.ok());
  CHECK(model->bundle.tensors->tensor("layers.0.weight").ok());
  const auto read = model->bundle.tensors->tensor("layers.1.weight");
  for (const Error& error : {read.error(), store->verify({"a"}, {}).error()}) {
    CHECK(error.code == ErrorCode::kCorrupt);
    CHECK(error.where == "a@1");
    CHECK(error.what.find("tensor layers.1.weight") != std::string::npos);
    CHECK(error.what.find(extent.path().filename()) != std::string::npos);
    const uint64_t block = size - 2'400'000 + (2 << 20);
    CHECK(error.what.find("block at byte " + std::to_string(block)) != std::string::npos);
  }
}

TEST_CASE(
    "what was checked is checked again only where it is taken anew, and a glance reads nothing") {
  const Folder folder;
  auto store = open_store(folder.path());
  publish(*store, "a", random_model({1}, 50'000));
  const auto model = store->open_model({"a"});
  REQUIRE(model.ok());
  const TensorSource& tensors = *model->bundle.tensors;
  CHECK(tensors.tensor("layers.0.weight").ok());
  const Path extent = std::filesystem::directory_iterator(folder.path() / "extents")->path();
  flip_bit(extent, 100'000);
  CHECK(tensors.tensor("layers.0.weight").ok());
  const auto anew = tensors.anew();
  REQUIRE(anew != nullptr);
  const auto glance = anew->glance("layers.0.weight");
  REQUIRE(glance.ok());
  CHECK(glance->shape == tensors.tensor("layers.0.weight")->shape);
  CHECK(glance->bytes.empty());
  CHECK(anew->tensor("layers.0.weight").error().code == ErrorCode::kCorrupt);
  flip_bit(extent, 100'000);
  CHECK(anew->tensor("layers.0.weight").error().code == ErrorCode::kCorrupt);
  CHECK(tensors.anew()->tensor("layers.0.weight").ok());
  CHECK(anew->glance("absent").error().code == ErrorCode::kNotFound);
}

TEST_CASE("publishing the same content again mends what was damaged, for all that share it") {
  for (const bool gone : {false, true}) {
    CAPTURE(gone);
    const Folder folder;
    auto store = open_store(folder.path());
    publish(*store, "a", random_model({1, 2, 3}, 50'000));
    const Path extent = std::filesystem::directory_iterator(folder.path() / "extents")->path();
    if (gone)
      std::filesystem::remove(extent);
    else
      flip_bit(extent, 300'000);
    REQUIRE_FALSE(store->verify({"a"}, {}).ok());
    publish(*store, "b", random_model({1, 2, 3}, 50'000));
    for (const char* name : {"a", "b"}) CHECK(store->verify({name}, {}).ok());
    store.reset();
    store = open_store(folder.path());
    CHECK(store->verify({"a"}, {}).ok());
    CHECK(files_in(folder.path() / "extents") == (gone ? 1 : 2));
    REQUIRE(store->remove({"a"}).ok());
    REQUIRE(store->remove({"b"}).ok());
    CHECK(files_in(folder.path() / "extents") == 0);
  }
}

TEST_CASE("a missing or cut extent is an error, not a crash") {
  for (const bool cut : {false, true}) {
    CAPTURE(cut);
    const Folder folder;
    auto store = open_store(folder.path());
    ModelBundle bundle = random_model({1});
    bundle.documents.clear();
    publish(*store, "a", bundle);
    const Path extent = std::filesystem::directory_iterator(folder.path() / "extents")->path();
    if (cut)
      std::filesystem::resize_file(extent, 5000);
    else
      std::filesystem::remove(extent);
    const auto model = store->open_model({"a"});
    REQUIRE(model.ok());
    const char* words = cut ? "the file ends at byte 5000" : "the file is missing";
    for (const Error& error : {model->bundle.tensors->tensor("layers.0.weight").error(),
                               store->verify({"a"}, {}).error()}) {
      CHECK(error.code == ErrorCode::kCorrupt);
      CHECK_MESSAGE(error.what.find(words) != std::string::npos, error.what);
    }
  }
}

}  // namespace
}  // namespace fastserve
