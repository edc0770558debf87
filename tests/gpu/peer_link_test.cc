// Copies from card to card, over the stand-in for NVIDIA's runtime.
#include <algorithm>
#include <cstdlib>
#include <vector>

#include "plugin_on_stand_in.h"

using namespace fastserve;

namespace {

constexpr int kInvalidValue = 1, kLaunchFailure = 719;

/// The stand-in for NVIDIA's driver reads it once: it has two cards in this program.
[[maybe_unused]] const int two_cards = ::setenv("FASTSERVE_STUB_DRIVER", "devices=2", 1);

struct Work {
  std::unique_ptr<Device> devices[2];
  std::unique_ptr<DeviceBuffer> memory[2];
  std::unique_ptr<DeviceLink> link;

  Status open() {
    for (int i = 0; i < 2; i++) {
      FS_ASSIGN(devices[i], plugin().make_device(i, {}));
      FS_ASSIGN(memory[i], devices[i]->allocate(sizeof(float) * 16));
    }
    Device* const both[] = {devices[0].get(), devices[1].get()};
    FS_ASSIGN(link, plugin().link(both));
    return {};
  }
  /// What has failed, before what came of that on the other card.
  Status sync() {
    const Status first = devices[0]->sync(), second = devices[1]->sync();
    const bool came_of_it =
        !first.ok() && first.error().what.find("what another card") != std::string::npos;
    return first.ok() || (came_of_it && !second.ok()) ? second : first;
  }
  /// There and back again.
  Status run() {
    FS_TRY(open());
    const std::vector<float> sent(16, 2.5f);
    devices[0]->copy_in(memory[0]->data(), sent.data(), sizeof(float) * 16);
    link->copy(1, memory[1]->data(), 0, memory[0]->data(), sizeof(float) * 16);
    devices[0]->fill_zero(memory[0]->data(), sizeof(float) * 16);
    link->copy(0, memory[0]->data(), 1, memory[1]->data(), sizeof(float) * 16);
    std::vector<float> got(16);
    devices[0]->copy_out(got.data(), memory[0]->data(), sizeof(float) * 16);
    FS_TRY(sync());
    CHECK(got == sent);
    return {};
  }
};

}  // namespace

TEST_CASE("bytes go from one card to the other behind its work, and before what comes after") {
  card().reset();
  {
    Work work;
    const Status status = work.open();
    REQUIRE_MESSAGE(status.ok(), status.error().message());
    CHECK(work.link->description() == "copies from card to card");
    card().reset();
    work.link->copy(1, work.memory[1]->data(), 0, work.memory[0]->data(), 64);
    std::vector<std::string> order = card().calls();
    std::erase(order, "cudaSetDevice");
    std::erase(order, "cudaEventCreateWithFlags");
    const std::vector<std::string> expected = {"cudaEventRecord", "cudaStreamWaitEvent",
                                               "cudaMemcpyPeerAsync", "cudaEventRecord",
                                               "cudaStreamWaitEvent"};
    CHECK(order == expected);
    card().reset();
    work.link->copy(1, work.memory[1]->data(), 0, work.memory[0]->data(), 0);
    CHECK(card().calls().empty());
  }
  CHECK_MESSAGE(card().live().none(), card().live().text());
}

TEST_CASE("whichever call of two cards fails, for once or for good, it is told and nothing leaks") {
  for (const bool lost : {false, true}) {
    card().reset();
    size_t calls = 0;
    {
      Work whole;
      const Status status = whole.run();
      REQUIRE_MESSAGE(status.ok(), status.error().message());
      calls = card().calls().size();
    }
    const std::vector<std::string> names = card().calls();
    REQUIRE(std::find(names.begin(), names.end(), "cudaMemcpyPeerAsync") != names.end());
    for (size_t nth = 0; nth < calls; nth++) {
      card().reset();
      card().fail(static_cast<int>(nth), lost ? kLaunchFailure : kInvalidValue, lost);
      const Status status = Work().run();
      const std::string what = "call " + std::to_string(nth) + ", " + names[nth];
      REQUIRE_MESSAGE(!status.ok(), what << " failed and nobody was told");
      CHECK_MESSAGE(status.error().message().find("as the test's script says") != std::string::npos,
                    what << ": " << status.error().message());
      if (lost) CHECK_MESSAGE(status.error().code == ErrorCode::kUnavailable, what);
      CHECK_MESSAGE(card().live().none(), what << " leaves " << card().live().text());
    }
  }
  card().reset();
}

TEST_CASE("a card that has failed sends nothing, and who was to get it is told") {
  card().reset();
  {
    Work work;
    REQUIRE(work.open().ok());
    card().reset();
    card().fail(1, kInvalidValue, false);
    const float number = 1;
    work.devices[0]->copy_in(work.memory[0]->data(), &number, sizeof number);
    card().reset();
    work.link->copy(1, work.memory[1]->data(), 0, work.memory[0]->data(), 64);
    CHECK(card().calls().empty());
    const Status told = work.devices[1]->sync();
    REQUIRE_FALSE(told.ok());
    CHECK(told.error().what.find("what another card was to send has not come") !=
          std::string::npos);
    CHECK_FALSE(work.devices[0]->sync().ok());
    CHECK(work.sync().ok());
  }
  CHECK(card().live().none());
}

TEST_CASE("the plugin's cards add up by the NCCL that it opens") {
  card().reset();
  {
    Work work;
    const Status status = work.open();
    REQUIRE_MESSAGE(status.ok(), status.error().message());
    const Status opened = work.link->open_collectives();
    REQUIRE_MESSAGE(opened.ok(), opened.error().message());
    CHECK(work.link->reduce_id() == "ring of 2, NCCL 2.28.9");
    const std::vector<float> numbers(16, 2.5f);
    for (int i = 0; i < 2; i++)
      work.devices[i]->copy_in(work.memory[i]->data(), numbers.data(), 64);
    float* const ranges[] = {static_cast<float*>(work.memory[0]->data()),
                             static_cast<float*>(work.memory[1]->data())};
    const float* const parts[] = {ranges[0], ranges[1]};
    work.link->reduce(1, ranges[1], parts, 16);
    work.link->broadcast(1, ranges, 16);
    work.link->settle();
    CHECK(work.sync().ok());
    std::vector<float> got(16);
    work.devices[0]->copy_out(got.data(), ranges[0], 64);
    CHECK(got == std::vector<float>(16, 5.0f));
  }
  CHECK_MESSAGE(card().live().none(), card().live().text());
}
