// The parity check must be able to fail, and must say what it could not check.
#include <doctest/doctest.h>
#include <unistd.h>

#include "cpu/cpu_device.h"
#include "model/safetensors.h"
#include "model/transformer/parity.h"
#include "tests/transformer/reference_models.h"

namespace fastserve {
namespace {

/// A copy of one carried model that a test may spoil; removed at the end.
class Copy {
 public:
  explicit Copy(const std::string& model)
      : path_(std::filesystem::temp_directory_path() /
              ("fastserve-parity-" + std::to_string(getpid()) + "-" + model)) {
    std::filesystem::remove_all(path_);
    std::filesystem::copy(carried(model), path_, std::filesystem::copy_options::recursive);
    for (const auto& entry : std::filesystem::directory_iterator(path_))
      std::filesystem::permissions(entry.path(), std::filesystem::perms::owner_write,
                                   std::filesystem::perm_options::add);
  }
  ~Copy() { std::filesystem::remove_all(path_); }
  static Path carried(const std::string& model) {
    return Path(FASTSERVE_SOURCE_DIR) / "tests/data/reference/models" / model;
  }
  const Path& path() const { return path_; }
  void replace(const std::string& file, const std::string& from, const std::string& to) {
    std::string text = read_file(path_ / file).value();
    const size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    REQUIRE(write_file_atomically(path_ / file, text.replace(at, from.size(), to)).ok());
  }

 private:
  Path path_;
};

const ParityCheck& find(const ModelParity& parity, const std::string& beginning) {
  for (const ParityCheck& check : parity.checks)
    if (check.quantity.starts_with(beginning)) return check;
  FAIL("no check begins with ", beginning);
  return parity.checks.front();
}

}  // namespace

TEST_CASE("the mildest mistake, a norm epsilon ten times too large, fails the check") {
  const auto device = make_reference_device();
  Copy copy("gpt2-tiny");
  copy.replace("config.json", "\"layer_norm_epsilon\": 1e-05", "\"layer_norm_epsilon\": 1e-04");
  const auto parity = check_model(copy.path(), *device);
  REQUIRE(parity.ok());
  CHECK_FALSE(parity->passed());
  for (const char* quantity : {"logits", "hidden.1", "token loss", "gradients, relative l2",
                               "greedy logits", "training loss per step"}) {
    CAPTURE(quantity);
    const ParityCheck& check = find(*parity, quantity);
    CHECK_FALSE(check.passed);
    CHECK(check.error > check.tolerance);
  }
}

TEST_CASE("a config whose two spellings differ fails the check") {
  const auto device = make_reference_device();
  Copy copy("mistral-tiny");
  copy.replace("config.v5.json", "\"sliding_window\": 16", "\"sliding_window\": 15");
  const auto parity = check_model(copy.path(), *device);
  REQUIRE(parity.ok());
  CHECK_FALSE(find(*parity, "config.v5.json").passed);
  CHECK(find(*parity, "greedy tokens").passed);
}

TEST_CASE("quantities that a reference lacks are skipped with a note") {
  const auto device = make_reference_device();
  const auto parity = check_model(Copy::carried("mistral-tiny"), *device);
  REQUIRE(parity.ok());
  CHECK(parity->passed());
  for (const char* quantity : {"logits", "hidden.0", "gradients", "updates"}) {
    CAPTURE(quantity);
    CHECK(find(*parity, quantity).skipped);
    CHECK_FALSE(find(*parity, quantity).note.empty());
  }
  CHECK_FALSE(find(*parity, "mean loss").skipped);
}

TEST_CASE("a reference may lie in another directory") {
  const auto device = make_reference_device();
  Copy copy("qwen2-tiny");
  const Path base = copy.path() / "base";
  std::filesystem::create_directory(base);
  for (const char* file : {"reference.json", "reference.safetensors"})
    std::filesystem::rename(copy.path() / file, base / file);
  REQUIRE(write_file_atomically(copy.path() / "reference.json",
                                R"({"reference": "base/reference.safetensors"})")
              .ok());
  const auto parity = check_model(copy.path(), *device);
  REQUIRE_MESSAGE(parity.ok(), parity.error().message());
  CHECK(parity->passed());
  CHECK_FALSE(find(*parity, "greedy until the end token").skipped);
}

TEST_CASE("a reference of another shape is refused, naming the tensor and both shapes") {
  const auto device = make_reference_device();
  Copy copy("qwen2-tiny");
  TensorMap wrong;
  for (const char* name : {"input_ids", "labels"})
    wrong.add(name, {DType::kI64, {1, 4}, std::vector<std::byte>(4 * sizeof(int64_t))});
  wrong.add("logits", Tensor::from_floats({1, 4, 9}, std::vector<float>(36)));
  REQUIRE(write_safetensors(copy.path() / "reference.safetensors", wrong).ok());
  const auto parity = check_model(copy.path(), *device);
  REQUIRE_FALSE(parity.ok());
  CHECK(parity.error().code == ErrorCode::kCorrupt);
  for (const char* part : {"\"logits\"", "[1, 4, 9]", "[1, 4, 512]"})
    CHECK(parity.error().what.find(part) != std::string::npos);
}

TEST_CASE("a directory without a reference is not found") {
  const auto device = make_reference_device();
  const auto parity = check_model(Path(FASTSERVE_SOURCE_DIR) / "tests", *device);
  REQUIRE_FALSE(parity.ok());
  CHECK(parity.error().code == ErrorCode::kNotFound);
}

}  // namespace fastserve
