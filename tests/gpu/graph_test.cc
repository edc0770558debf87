// Work captured once and started again, and what the emulator says of those who break its rules.
#include <doctest/doctest.h>

#include <cstring>
#include <functional>
#include <future>
#include <thread>
#include <vector>

#include "gpu/launch.h"

namespace fastserve::gpu {
namespace {

__global__ void scale_by(float* x, const float* by, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] = x[i] * *by;
}

constexpr int kCount = 70;

/// x on the card, the number it is multiplied by, and where that comes from.
struct Work {
  explicit Work(const simt::Options& options = {}) : runtime(simt::make_emulated_runtime(options)) {
    x = static_cast<float*>(runtime->allocate(kCount * sizeof(float)).value());
    by = static_cast<float*>(runtime->allocate(sizeof(float)).value());
    pinned = runtime->allocate_host(64).value();
    const std::vector<float> ones(kCount, 1.0f);
    runtime->copy_in(x, ones.data(), ones.size() * sizeof(float));
  }
  ~Work() {
    runtime->free(x);
    runtime->free(by);
  }
  void set(float value) { std::memcpy(pinned->data(), &value, sizeof value); }
  void scale() {
    runtime->copy_in_async(by, pinned->data(), sizeof(float));
    launch(*runtime, {"scale_by", {3}, {32}}, scale_by, x, static_cast<const float*>(by), kCount);
  }
  std::unique_ptr<Graph> captured() {
    runtime->begin_capture();
    scale();
    auto graph = runtime->end_capture();
    REQUIRE(graph.ok());
    return std::move(*graph);
  }
  std::vector<float> result() {
    std::vector<float> out(kCount);
    runtime->copy_out(out.data(), x, out.size() * sizeof(float));
    return out;
  }
  std::string wrong() {
    const Status status = runtime->sync();
    return status.ok() ? "" : status.error().message();
  }

  std::unique_ptr<Runtime> runtime;
  float *x = nullptr, *by = nullptr;
  std::unique_ptr<DeviceBuffer> pinned;
};

bool mentions(const std::string& text, const char* words) {
  return text.find(words) != std::string::npos;
}

}  // namespace

TEST_CASE("captured work is done when it is started, as often as it is, with the bytes of then") {
  for (const auto order : {simt::Order::kForward, simt::Order::kReverse, simt::Order::kShuffled}) {
    simt::Options options;
    options.order = order;
    options.own_memory = true;
    Work work(options);
    work.set(5);
    const auto graph = work.captured();
    CHECK(work.result() == std::vector<float>(kCount, 1.0f));
    for (const float by : {2.0f, 3.0f}) {
      work.set(by);
      work.runtime->launch(*graph);
      work.result();  // waits
    }
    CHECK(work.result() == std::vector<float>(kCount, 6.0f));
    CHECK(work.wrong() == "");
  }
}

TEST_CASE("what a capture cannot hold ends it without a graph, which names it, and sync does not") {
  Work work;
  float value = 2;
  const std::vector<std::pair<const char*, std::function<void()>>> misuses = {
      {"to allocate memory", [&] { CHECK_FALSE(work.runtime->allocate(8).ok()); }},
      {"to free memory", [&] { work.runtime->free(std::exchange(work.by, nullptr)); }},
      {"not pinned", [&] { work.runtime->copy_in(work.x, &value, sizeof value); }},
      {"not pinned", [&] { work.runtime->copy_in_async(work.x, &value, sizeof value); }},
      {"a copy from the card", [&] { work.result(); }},
      {"to wait for the card", [&] { CHECK_FALSE(work.runtime->sync().ok()); }},
      {"to wait", [&] { work.runtime->wait(1); }},
      {"another capture", [&] { work.runtime->begin_capture(); }}};
  for (const auto& [what, misuse] : misuses) {
    work.runtime->begin_capture();
    misuse();
    const auto graph = work.runtime->end_capture();
    REQUIRE_FALSE(graph.ok());
    CHECK_MESSAGE(mentions(graph.error().message(), what), what);
    CHECK(work.wrong() == "");
  }
}

TEST_CASE("what had failed before a capture ends it without a graph, and is still told by sync") {
  Work work;
  work.runtime->report({ErrorCode::kInternal, "has failed before", "a test", ""});
  work.runtime->begin_capture();
  work.scale();
  const auto graph = work.runtime->end_capture();
  REQUIRE(graph.ok());
  CHECK(*graph == nullptr);
  CHECK(mentions(work.wrong(), "has failed before"));
  CHECK(work.wrong() == "");
}

TEST_CASE("what other threads start while one captures is done at once, and in no graph") {
  Work work;
  work.set(2);
  work.runtime->wait(work.runtime->copy_in_async(work.by, work.pinned->data(), sizeof(float)));
  const auto scale = [&] {
    launch(*work.runtime, {"scale_by", {3}, {32}}, scale_by, work.x,
           static_cast<const float*>(work.by), kCount);
  };
  work.runtime->begin_capture();
  scale();
  std::vector<float> seen;
  std::unique_ptr<Graph> others;
  std::promise<void> done;
  std::thread other([&] {
    scale();
    seen = work.result();
    work.runtime->free(work.runtime->allocate(1000).value());
    CHECK(work.wrong() == "");
    done.set_value();
    work.runtime->begin_capture();  // when the first has ended
    others = work.runtime->end_capture().value();
  });
  done.get_future().wait();
  const auto graph = work.runtime->end_capture();
  other.join();
  REQUIRE(graph.ok());
  CHECK(seen == std::vector<float>(kCount, 2.0f));
  work.runtime->launch(**graph);
  work.runtime->launch(*others);
  CHECK(work.result() == std::vector<float>(kCount, 4.0f));
  CHECK(work.wrong() == "");
}

TEST_CASE("a graph whose memory was freed is not started, though others now have that memory") {
  Work work;
  const auto graph = work.captured();
  work.runtime->free(work.by);
  work.by = static_cast<float*>(work.runtime->allocate(sizeof(float)).value());
  work.runtime->launch(*graph);
  CHECK(mentions(work.wrong(), "was captured with memory that has been freed since"));
}

TEST_CASE("a kernel that fails in a graph is told with its name, a lost card stays lost") {
  simt::Options options;
  options.launches = 1;
  Work work(options);
  const auto graph = work.captured();
  work.runtime->launch(*graph);
  CHECK(work.wrong() == "");
  for (int i = 0; i < 2; ++i) {
    work.runtime->launch(*graph);
    CHECK(work.wrong() != "");
  }
}

TEST_CASE("pinned memory that changes before its copy was waited for is told") {
  Work work;
  work.set(2);
  Ticket ticket = work.runtime->copy_in_async(work.by, work.pinned->data(), sizeof(float));
  work.runtime->wait(ticket);
  work.set(3);
  CHECK(work.wrong() == "");
  ticket = work.runtime->copy_in_async(work.by, work.pinned->data(), sizeof(float));
  work.set(4);
  work.runtime->wait(ticket);
  CHECK(mentions(work.wrong(), "was changed before a copy from it was waited for"));
  work.runtime->copy_in_async(work.by, work.pinned->data(), sizeof(float));
  work.pinned.reset();
  CHECK(mentions(work.wrong(), "was freed before a copy from it was waited for"));
}

}  // namespace fastserve::gpu
