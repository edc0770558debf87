// Models whose tensors lie in pinned memory.
#include "model/preloaded.h"

#include "gpu/pinned_ranges.h"
#include "tests/gpu/gpu_tests.h"

namespace fastserve::harness {
namespace {

/// Tensors of several sizes, one of them of no bytes and one of more than a thread takes at a time.
ModelBundle some_bundle() {
  Rng rng(9);
  auto tensors = std::make_shared<TensorMap>("the store");
  for (const int64_t n : {1, 0, 100, 3'000'000}) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = static_cast<float>(rng.uniform());
    tensors->add("t" + std::to_string(n), Tensor::from_floats({n}, values, DType::kF32));
  }
  return {{{"config.json", "{}"}}, tensors};
}

constexpr uint64_t kNeeded = 64 + 448 + 12'000'000;

/// A device of which allocate_host() gives memory that is not pinned after so many times.
class FewPinned final : public Device {
 public:
  FewPinned(Device& device, int times) : device_(device), times_(times) {}
  std::string description() const override { return "few"; }
  std::string numerics_id() const override { return "few"; }
  Result<std::unique_ptr<DeviceBuffer>> allocate(size_t bytes) override {
    return device_.allocate(bytes);
  }
  bool host_memory() const override { return false; }
  uint64_t available_memory() const override { return 0; }
  Result<std::unique_ptr<DeviceBuffer>> allocate_host(size_t bytes) override {
    if (times_-- > 0) return device_.allocate_host(bytes);
    if (times_ < -1) return Error{ErrorCode::kUnavailable, "is lost", "the card", ""};
    return std::unique_ptr<DeviceBuffer>(std::make_unique<gpu::HostBlock>(bytes));
  }
  bool pinned(const void* host, size_t bytes) const override { return device_.pinned(host, bytes); }
  void copy_in(void*, const void*, size_t) override {}
  void copy_out(void*, const void*, size_t) override {}
  void fill_zero(void*, size_t) override {}
  Status sync() override { return {}; }
  std::unique_ptr<TrainOps> make_train_ops(Precision) override { return nullptr; }
  std::unique_ptr<DecodeOps> make_decode_ops() override { return nullptr; }

 private:
  Device& device_;
  int times_;
};

}  // namespace

TEST_CASE("a preloaded bundle has its own copy of each tensor, pinned, and outlives all else") {
  auto device = emulated_gpu();
  ModelBundle bundle = some_bundle();
  std::vector<double> progress;
  auto preloaded =
      preload(*device, bundle, kNeeded, {[&](double p) { progress.push_back(p); }, {}}).value();
  CHECK(preloaded.documents == bundle.documents);
  CHECK(preloaded.tensors->names() == bundle.tensors->names());
  CHECK(preloaded.tensors->where() == "the store");
  for (const std::string& name : bundle.tensors->names()) {
    const TensorView was = bundle.tensors->tensor(name).value();
    const TensorView is = preloaded.tensors->tensor(name).value();
    CHECK(is.dtype == was.dtype);
    CHECK(is.shape == was.shape);
    CHECK(is.bytes.data() != was.bytes.data());
    CHECK(std::equal(is.bytes.begin(), is.bytes.end(), was.bytes.begin(), was.bytes.end()));
    if (is.bytes.empty()) continue;
    CHECK(device->pinned(is.bytes.data(), is.bytes.size()));
    CHECK_FALSE(device->pinned(was.bytes.data(), was.bytes.size()));
    CHECK(reinterpret_cast<size_t>(is.bytes.data()) % 64 == 0);
  }
  CHECK_FALSE(preloaded.tensors->contains("t2"));
  const auto none = preloaded.tensors->tensor("t2");
  REQUIRE_FALSE(none.ok());
  CHECK(none.error().code == ErrorCode::kNotFound);
  REQUIRE_FALSE(progress.empty());
  CHECK(std::is_sorted(progress.begin(), progress.end()));
  CHECK(progress.back() == 1);
  bundle = {};
  device.reset();
  CHECK(preloaded.tensors->tensor("t1")->to_floats().size() == 1);
}

TEST_CASE("tensors that need more pinned memory than they may take are refused with both sizes") {
  const auto device = emulated_gpu();
  const auto refused = preload(*device, some_bundle(), kNeeded - 1);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kResourceExhausted);
  CHECK(refused.error().where == "the store");
  CHECK(refused.error().what == "needs 11.4 MiB of pinned memory, and may take 11.4 MiB");
}

TEST_CASE("a host that gives no more pinned memory, or a card that is lost, ends it cleanly") {
  const auto device = emulated_gpu();
  FewPinned few(*device, 0);
  for (const ErrorCode expected : {ErrorCode::kResourceExhausted, ErrorCode::kUnavailable}) {
    const auto refused = preload(few, some_bundle(), kNeeded);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code == expected);
  }
}

TEST_CASE("copying to pinned memory is stopped where its watcher says so") {
  const auto device = emulated_gpu();
  for (int goes_on = 0; goes_on < 6; ++goes_on) {
    int asked = 0;
    const auto stopped =
        preload(*device, some_bundle(), kNeeded, {{}, [&] { return asked++ == goes_on; }});
    REQUIRE_FALSE(stopped.ok());
    CHECK(stopped.error().code == ErrorCode::kCancelled);
  }
}

TEST_CASE("a range is pinned when all of it lies in one piece of memory that is there") {
  gpu::PinnedRanges ranges;
  const std::byte memory[100] = {};
  CHECK_FALSE(ranges.hold(memory, 1));
  ranges.add(memory + 10, 20);
  ranges.add(memory + 30, 20);
  CHECK(ranges.hold(memory + 10, 20));
  CHECK(ranges.hold(memory + 29, 1));
  CHECK_FALSE(ranges.hold(memory + 9, 1));
  CHECK_FALSE(ranges.hold(memory + 29, 2));
  CHECK_FALSE(ranges.hold(memory + 50, 1));
  CHECK_FALSE(ranges.hold(memory + 40, ~size_t{0}));
  ranges.remove(memory + 10);
  CHECK_FALSE(ranges.hold(memory + 10, 1));
  CHECK(ranges.hold(memory + 49, 1));
}

}  // namespace fastserve::harness
