// What a trainer says of a unit's gradient while it is still at work on it.
#include "train/gradient_worker.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "fake_backend.h"

using namespace fastserve;

namespace {

constexpr size_t kElements = FakeBackend::kElements;

/// Writes its gradient from the last element to the first, and tells of each stretch. Asks for
/// weights in as many stretches.
class StretchedSource final : public GradientSource {
 public:
  StretchedSource(FakeBackend& backend, size_t stretch) : source_(backend), stretch_(stretch) {}
  Result<double> run(const Microbatch& batch, float scale, float* grad) override {
    return source_.run(batch, scale, grad);
  }
  Result<double> run_along(const Microbatch& batch, float scale, float* grad,
                           PassFlow& flow) override {
    for (size_t end = 0; end < kElements;) {
      end = std::min(kElements, end + stretch_);
      if (!flow.await_weights(end)) return std::nan("");
    }
    std::vector<float> whole(kElements);
    FS_ASSIGN(const double loss, source_.run(batch, scale, whole.data()));
    if (grad == nullptr) return loss;
    std::fill(grad, grad + kElements, std::nanf(""));
    for (size_t from = kElements; from > 0;) {
      const size_t end = from;
      from -= std::min(from, stretch_);
      std::copy(whole.begin() + static_cast<ptrdiff_t>(from),
                whole.begin() + static_cast<ptrdiff_t>(end), grad + from);
      flow.gradient_final(from);
    }
    return loss;
  }
  void add(float* into, const float* other) override { source_.add(into, other); }
  size_t bytes() const override { return 0; }

 private:
  FakeSource source_;
  const size_t stretch_;
};

struct Bench {
  Bench() {
    const auto first = FakeBackend::initial_weights();
    std::copy(first.begin(), first.end(), backend.masters().begin());
    backend.refresh_all();
  }
  GradientWorker worker(std::unique_ptr<GradientSource> source, WeightsGate* gate = nullptr) {
    return GradientWorker(std::move(source), sampler, nullptr, pool, {}, gate);
  }
  static WorkItem unit(uint32_t count) {
    WorkItem item;
    item.step = item.weights = {3};
    item.subtree = item.whole = {0, count};
    item.scale = 0.25f;
    return item;
  }

  FakeBackend backend;
  std::shared_ptr<Dataset> data = made_up_dataset();
  Sampler sampler{data->train, {6, 7, 7}, 1};
  GradientPool pool{[this] { return backend.allocate(kElements * sizeof(float)); }};
};

}  // namespace

TEST_CASE("what a trainer says is final of a unit's sum is so, and has the bits of the whole") {
  Bench bench;
  for (uint32_t count = 1; count <= 7; count++) {
    CAPTURE(count);
    GradientWorker plain = bench.worker(std::make_unique<FakeSource>(bench.backend));
    const auto expected = plain.compute(Bench::unit(count)).value();
    std::vector<float> told;
    std::vector<size_t> marks;
    GradientWorker along = bench.worker(std::make_unique<StretchedSource>(bench.backend, 300));
    const auto done =
        along
            .compute(Bench::unit(count),
                     [&](const GradientHandle& sum, size_t from) {
                       const size_t end = marks.empty() ? kElements : marks.back();
                       told.insert(told.begin(), sum->data() + from, sum->data() + end);
                       marks.push_back(from);
                     })
            .value();
    CHECK(marks == std::vector<size_t>{700, 400, 100, 0});
    CHECK(std::equal(told.begin(), told.end(), expected.gradient->data()));
    CHECK(std::equal(told.begin(), told.end(), done.gradient->data()));
    CHECK(done.losses == expected.losses);
  }
}

TEST_CASE("a source that says nothing on its way is heard of once, when it is done") {
  Bench bench;
  GradientWorker worker = bench.worker(std::make_unique<FakeSource>(bench.backend));
  std::vector<size_t> marks;
  const auto done = worker
                        .compute(Bench::unit(5),
                                 [&](const GradientHandle&, size_t from) { marks.push_back(from); })
                        .value();
  CHECK(!done.dropped);
  CHECK(marks == std::vector<size_t>{0});
}

TEST_CASE(
    "a unit whose weights are overtaken in the midst of its pass is dropped, and nothing is held") {
  Bench bench;
  WeightsGate gate;
  gate.divide(2);
  GradientWorker worker =
      bench.worker(std::make_unique<StretchedSource>(bench.backend, 300), &gate);
  worker.wait_by_range({0, 500});
  gate.enter_write(0, {3});
  gate.leave_write(0);
  gate.enter_write(1, {4});
  gate.leave_write(1);
  bool told = false;
  const auto done =
      worker.compute(Bench::unit(3), [&](const GradientHandle&, size_t) { told = true; }).value();
  CHECK(done.dropped);
  CHECK(!told);
  CHECK(gate.may_write(0, {4}));
}
