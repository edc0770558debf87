// Folders that vanish with the test, and models of seeded random bytes.
#pragma once

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/rng.h"
#include "store/store.h"

namespace fastserve::testing {

/// A folder of its own below the system's temporary one, removed at the end.
class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "fastserve-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const Path& path() const { return path_; }

 private:
  Path path_;
};

inline Tensor random_tensor(uint64_t seed, std::vector<int64_t> shape) {
  Tensor tensor;
  tensor.dtype = DType::kF32;
  tensor.shape = std::move(shape);
  size_t elements = 1;
  for (const int64_t size : tensor.shape) elements *= static_cast<size_t>(size);
  tensor.bytes.resize(elements * 4);
  Rng rng(seed);
  for (size_t i = 0; i + 8 <= tensor.bytes.size(); i += 8) {
    const uint64_t word = rng.next();
    std::memcpy(tensor.bytes.data() + i, &word, 8);
  }
  return tensor;
}

/// Two documents, and tensors "layers.I.weight" of `elements` floats from seeds[I].
inline ModelBundle random_model(const std::vector<uint64_t>& seeds, int64_t elements = 5000) {
  ModelBundle bundle;
  bundle.documents["config.json"] = R"({"model_type": "llama"})";
  bundle.documents["empty.txt"] = "";
  auto tensors = std::make_shared<TensorMap>();
  for (size_t i = 0; i < seeds.size(); i++)
    tensors->add("layers." + std::to_string(i) + ".weight", random_tensor(seeds[i], {elements}));
  bundle.tensors = tensors;
  return bundle;
}

inline void check_same(const ModelBundle& a, const ModelBundle& b) {
  CHECK(a.documents == b.documents);
  REQUIRE(a.tensors->names() == b.tensors->names());
  for (const std::string& name : a.tensors->names()) {
    const auto left = a.tensors->tensor(name), right = b.tensors->tensor(name);
    REQUIRE(left.ok());
    if (!right.ok()) FAIL(right.error().message());
    CHECK(left->dtype == right->dtype);
    CHECK(left->shape == right->shape);
    REQUIRE(left->bytes.size() == right->bytes.size());
    const bool same = left->bytes.empty() ||
                      std::memcmp(left->bytes.data(), right->bytes.data(), left->bytes.size()) == 0;
    CHECK_MESSAGE(same, name);
  }
}

inline std::unique_ptr<Store> open_store(const Path& root) {
  auto store = Store::open(root);
  if (!store.ok()) FAIL(store.error().message());
  return std::move(store).value();
}

inline ModelRef publish(Store& store, const std::string& name, const ModelBundle& bundle) {
  auto ref = store.publish(name, bundle, Lineage{"train", "", Json::object({})});
  if (!ref.ok()) FAIL(ref.error().message());
  return *ref;
}

inline size_t files_in(const Path& folder) {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder)) count++;
  return count;
}

inline uint64_t bytes_in(const Path& folder) {
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) bytes += entry.file_size();
  return bytes;
}

}  // namespace fastserve::testing
