// What cards add up by NCCL, over stand-ins for NCCL and for NVIDIA's runtime.
#include "gpu/cuda/nccl_link.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "gpu/cuda/device_runtime.h"
#include "gpu/cuda/peer_link.h"
#include "tests/gpu/stub_driver/nccl.h"
#include "tests/gpu/stub_driver/stub_driver.h"

extern "C" stub_driver::Control* stub_driver_control();

using namespace fastserve;
using namespace fastserve::gpu;

namespace {

constexpr int kInvalidValue = 1, kLaunchFailure = 719;
constexpr size_t kFloats = 16;

/// As the plugin's, but that nothing is looked for.
Opened<Nccl> stand_in() {
  static const Nccl table = [] {
    Nccl filled;
#define FILL(name) filled.name = ::name;
    FS_NCCL_FUNCTIONS(FILL)
#undef FILL
    return filled;
  }();
  return {&table, {"NCCL", "2.28.9", "here", ""}};
}

/// Goes on by itself: each look at it is a millisecond later.
class LookedAtClock final : public Clock {
 public:
  Nanoseconds now() const override { return now_ += std::chrono::milliseconds(1); }
  int64_t unix_seconds() const override { return 0; }

 private:
  mutable Nanoseconds now_{0};
};

/// Three cards, and what each holds.
struct Cards {
  explicit Cards(Opened<Nccl> with = stand_in()) : library(std::move(with)) {}
  ~Cards() {
    link.reset();
    for (int i = 0; i < 3; i++)
      if (memory[i] != nullptr) runtimes[i]->free(memory[i]);
  }

  Status open() {
    std::vector<Runtime*> all;
    for (int i = 0; i < 3; i++) {
      FS_ASSIGN(runtimes[i], make_cuda_runtime(i, "card " + std::to_string(i)));
      FS_ASSIGN(void* data, runtimes[i]->allocate(kFloats * sizeof(float)));
      memory[i] = static_cast<float*>(data);
      all.push_back(runtimes[i].get());
    }
    FS_ASSIGN(auto copies, make_peer_link(all));
    link = make_nccl_link(all, std::move(copies), library, clock, std::chrono::seconds(5));
    return link->open_collectives();
  }
  /// What has failed, before what came of that on other cards.
  Status sync() {
    link->settle();
    Status found;
    for (const auto& runtime : runtimes) {
      const Status status = runtime->sync();
      const bool came_of_it =
          !found.ok() && found.error().what.find("has not begun") != std::string::npos;
      if (!status.ok() && (found.ok() || came_of_it)) found = status;
    }
    return found;
  }
  void fill(size_t card, float value) const { std::fill_n(memory[card], kFloats, value); }
  void reduce(size_t to) const {
    const float* const parts[] = {memory[0], memory[1], memory[2]};
    link->reduce(to, memory[to], parts, kFloats);
  }
  void broadcast(size_t from) const {
    float* const ranges[] = {memory[0], memory[1], memory[2]};
    link->broadcast(from, ranges, kFloats);
  }
  /// A step's: a sum, and the answer to all.
  Status run() {
    FS_TRY(open());
    for (size_t i = 0; i < 3; i++) fill(i, static_cast<float>(i + 1));
    reduce(1);
    broadcast(1);
    FS_TRY(sync());
    for (const float* of : memory) CHECK(of[kFloats - 1] == 6.0f);
    return {};
  }

  Opened<Nccl> library;
  LookedAtClock clock;
  std::unique_ptr<Runtime> runtimes[3];
  float* memory[3] = {};
  std::unique_ptr<DeviceLink> link;
};

stub_driver::Control& card() { return *stub_driver_control(); }
stub_nccl::State& nccl_state() { return stub_nccl::state(); }

void start_over() {
  card().reset();
  nccl_state() = {};
}

/// Nothing is left, each communicator was given up once, and no rule was broken.
void check_clean(const std::string& what) {
  CHECK_MESSAGE(card().live().none(), what << " leaves " << card().live().text());
  CHECK_MESSAGE(nccl_state().live == 0, what);
  CHECK_MESSAGE(nccl_state().destroyed + nccl_state().aborted == nccl_state().made, what);
  CHECK_MESSAGE(nccl_state().wrong.empty(), what << ": " << nccl_state().wrong);
}

bool has(const Status& status, const char* words) {
  return !status.ok() && status.error().message().find(words) != std::string::npos;
}

}  // namespace

TEST_CASE("three cards add up what each holds by one group, and the answer goes to all by one") {
  start_over();
  {
    Cards cards;
    const Status opened = cards.open();
    REQUIRE_MESSAGE(opened.ok(), opened.error().message());
    CHECK(cards.link->description() == "NCCL 2.28.9");
    CHECK(cards.link->reduce_id() == "ring of 3, NCCL 2.28.9");
    for (size_t i = 0; i < 3; i++) cards.fill(i, static_cast<float>(i + 1));
    nccl_state().calls.clear();
    cards.reduce(2);
    const std::vector<std::string> expected = {"ncclGroupStart",
                                               "ncclReduce",
                                               "ncclReduce",
                                               "ncclReduce",
                                               "ncclGroupEnd",
                                               "ncclCommGetAsyncError",
                                               "ncclCommGetAsyncError",
                                               "ncclCommGetAsyncError"};
    CHECK(nccl_state().calls == expected);
    cards.broadcast(2);
    REQUIRE(cards.sync().ok());
    for (const float* of : cards.memory)
      CHECK(std::all_of(of, of + kFloats, [](float value) { return value == 6.0f; }));
    nccl_state().calls.clear();
    cards.link->reduce(0, nullptr, std::vector<const float*>(3, nullptr), 0);
    CHECK(nccl_state().calls.empty());
  }
  CHECK(nccl_state().destroyed == 3);
  CHECK(nccl_state().aborted == 0);
  check_clean("a whole job");
}

TEST_CASE("NCCL goes on behind the caller's back, and nothing is asked of it until it is ready") {
  start_over();
  nccl_state().looks = 3;
  CHECK(Cards().run().ok());
  check_clean("a slow start");
  CHECK(nccl_state().destroyed == 3);
}

TEST_CASE("whichever of NCCL's calls fails, it is told in NCCL's words and nothing is left") {
  start_over();
  REQUIRE(Cards().run().ok());
  const std::vector<std::string> names = nccl_state().calls;
  REQUIRE(std::ranges::count(names, "ncclBroadcast") == 3);
  for (size_t nth = 0; nth < names.size(); nth++) {
    start_over();
    nccl_state().fail_at = static_cast<int>(nth);
    const Status status = Cards().run();
    const std::string what = "call " + std::to_string(nth) + ", " + names[nth];
    if (names[nth] == "ncclCommDestroy")
      CHECK_MESSAGE(status.ok(), what);  // there is nobody left to tell
    else
      CHECK_MESSAGE(has(status, "as the test's script says (the last of NCCL's own words)"),
                    what << (status.ok() ? "" : status.error().message()));
    check_clean(what);
  }
}

TEST_CASE(
    "whichever call of three cards fails, for once or for good, it is told, nothing is left") {
  for (const bool lost : {false, true}) {
    start_over();
    REQUIRE(Cards().run().ok());
    const std::vector<std::string> names = card().calls();
    REQUIRE(std::ranges::count(names, "cudaEventQuery") == 6);
    for (size_t nth = 0; nth < names.size(); nth++) {
      start_over();
      card().fail(static_cast<int>(nth), lost ? kLaunchFailure : kInvalidValue, lost);
      bool ended = false;
      Status status;
      {
        Cards cards;
        status = cards.run();
        ended = nth >= card().calls().size();
      }
      const std::string what = "call " + std::to_string(nth) + ", " + names[nth];
      // Who gives something back has nobody to tell.
      if (ended || (status.ok() && names[nth] == "cudaEventDestroy")) {
        check_clean(what);
        continue;
      }
      REQUIRE_MESSAGE(!status.ok(), what << " failed and nobody was told");
      CHECK_MESSAGE(has(status, "as the test's script says"),
                    what << ": " << status.error().message());
      if (lost) CHECK_MESSAGE(status.error().code == ErrorCode::kUnavailable, what);
      check_clean(what);
    }
  }
}

TEST_CASE("a sum that waits for ever for a lost card is given up, and every card tells") {
  start_over();
  {
    Cards cards;
    REQUIRE(cards.open().ok());
    card().stall();
    cards.reduce(0);
    cards.link->settle();
    CHECK(nccl_state().aborted == 3);
    for (const auto& runtime : cards.runtimes) {
      const Status told = runtime->sync();
      CHECK(has(told, "has not moved for too long"));
      CHECK(told.error().code == ErrorCode::kUnavailable);
    }
    nccl_state().calls.clear();
    cards.broadcast(0);  // nor does anything else begin
    CHECK(nccl_state().calls.empty());
    for (const auto& runtime : cards.runtimes)
      CHECK(has(runtime->sync(), "has not moved for too long"));
    // What needs no other card goes on.
    cards.fill(0, 4);
    cards.link->copy(1, cards.memory[1], 0, cards.memory[0], sizeof(float));
    CHECK(cards.sync().ok());
    CHECK(*cards.memory[1] == 4);
  }
  check_clean("a sum without an end");
}

TEST_CASE("a start that never ends is given up") {
  start_over();
  nccl_state().never = true;
  CHECK(has(Cards().open(), "starting NCCL takes too long"));
  CHECK(nccl_state().aborted == 3);
  check_clean("a start without an end");
}

TEST_CASE("what goes wrong on the way ends the sum for all cards") {
  start_over();
  {
    Cards cards;
    REQUIRE(cards.open().ok());
    card().stall();
    cards.reduce(0);
    nccl_state().goes_bad = ncclRemoteError;
    cards.link->settle();
    for (const auto& runtime : cards.runtimes)
      CHECK(has(runtime->sync(), "a collective of all cards failed"));
  }
  CHECK(nccl_state().aborted == 3);
  check_clean("a sum that goes wrong");
}

TEST_CASE("where a card has failed no collective begins, and the others are told") {
  start_over();
  {
    Cards cards;
    REQUIRE(cards.open().ok());
    cards.runtimes[1]->report({ErrorCode::kUnavailable, "has failed before", "", ""});
    nccl_state().calls.clear();
    cards.reduce(0);
    CHECK(nccl_state().calls.empty());
    CHECK(has(cards.runtimes[1]->sync(), "has failed before"));
    CHECK(has(cards.runtimes[0]->sync(), "the sum over all cards has not begun"));
    CHECK(has(cards.runtimes[2]->sync(), "a card has failed"));
  }
  check_clean("a card that had failed");
}

TEST_CASE("without NCCL it is said why, and there are copies still") {
  start_over();
  {
    Cards cards({nullptr, {"NCCL", "", "", "libnccl.so.2: no such file; install libnccl2"}});
    const Status opened = cards.open();
    CHECK(has(opened, "NCCL: libnccl.so.2: no such file; install libnccl2"));
    CHECK(opened.error().code == ErrorCode::kUnsupported);
    CHECK(cards.link->description() == "copies from card to card");
    cards.fill(0, 4);
    cards.link->copy(1, cards.memory[1], 0, cards.memory[0], sizeof(float));
    CHECK(cards.sync().ok());
    CHECK(*cards.memory[1] == 4);
  }
  CHECK(nccl_state().calls.empty());
  check_clean("no NCCL");
}
