#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "plugin_on_stand_in.h"
#include "tests/scratch.h"

using namespace fastserve;

namespace {

// CUDA's numbers for them.
constexpr int kInvalidValue = 1, kOutOfMemory = 2, kEccUncorrectable = 214, kLaunchFailure = 719;

/// Memory, copies, kernels and products on the card, from its opening to a sync.
struct Work {
  std::unique_ptr<Device> device;
  std::unique_ptr<DeviceBuffer> buffer;
  std::unique_ptr<TrainOps> ops;
  std::unique_ptr<TrainMatrix> matrix;
  std::unique_ptr<DecodeOps> decode;
  std::unique_ptr<KvCache> cache;
  std::unique_ptr<DeviceBuffer> pinned, weights;
  std::unique_ptr<DecodeMatrix> packed;
  std::unique_ptr<DeviceGraph> graph;

  /// `plans`: where products that were tried before are kept.
  Status run(const Path& plans = {}) {
    FS_ASSIGN(device, plugin().make_device(0, plans));
    FS_ASSIGN(buffer, device->allocate(1 << 20));
    auto* floats = static_cast<float*>(buffer->data());
    std::vector<float> host(64 * 64, 1.0f);
    device->copy_in(floats, host.data(), host.size() * sizeof(float));
    ops = device->make_train_ops(Precision::kBFloat16);
    ops->norm_forward({NormKind::kLayerNorm, floats, floats, floats, 1e-5f, 64, 64, floats + 8192,
                       floats + 16384});
    matrix = ops->make_matrix(64, 64);
    if (matrix) {
      ops->pack(*matrix, 0, 64, floats);
      MatmulForward forward{};
      forward.weight = matrix.get();
      forward.x = floats;
      forward.rows = forward.x_ld = forward.out_ld = 64;
      forward.out = floats + 8192;
      for (const auto epilogue : {MatmulEpilogue::kStore, MatmulEpilogue::kStoreFloat}) {
        forward.epilogue = epilogue;
        ops->matmul_forward(forward);
      }
    }
    ops->add(floats, floats + 4096, floats + 8192, 4096);
    ops->sum_squares(floats, 4096);
    const FloatRun runs[] = {{floats, 4096}, {floats + 8192, 100}};
    std::vector<double> sums(2);
    ops->sums_of_squares(runs, sums);
    device->copy_in_beside(floats, host.data(), 4096);
    const Device::CopyMark first = device->copy_out_beside(host.data(), floats, 4096);
    device->copy_out_beside(host.data() + 1024, floats + 1024, 4096);
    const Device::CopyMark last = device->copy_out_async(host.data() + 2048, floats, 4096);
    device->wait_for(first);
    device->fill_zero(floats, 4096);
    decode = device->make_decode_ops();
    auto* const ids = reinterpret_cast<int32_t*>(floats);
    decode->feed({ids, ids + 8, 8});
    device->wait_for(last);
    FS_ASSIGN(cache, decode->make_cache({2, 2, 16, 16, 4, KvType::kFloat16}));
    for (int i = 0; i < 2; ++i) draw();  // the second may begin before the first has ended
    FS_TRY(load_pinned(floats));
    FS_TRY(run_graph(floats));
    device->copy_out(host.data(), floats, host.size() * sizeof(float));
    device->available_memory();
    return device->sync();
  }

  /// A matrix and a table from where they lie in pinned memory.
  Status load_pinned(float* floats) {
    constexpr int kOut = 40, kIn = 64;
    FS_ASSIGN(weights, device->allocate_host(kOut * (kIn + sizeof(float))));
    const auto* const bytes = static_cast<const std::byte*>(weights->data());
    const DecodeMatrixSource::Part part{
        {}, nullptr, kOut, {bytes, kOut * kIn}, DType::kF32, {bytes + kOut * kIn, kOut * 4}};
    FS_ASSIGN(packed, decode->make_matrix({{&part, 1}, kIn, WeightFormat::kInt8Row}));
    FS_TRY(decode->load(floats, part.stored));
    decode->loaded();
    return {};
  }

  /// A kernel of a decoding step.
  void draw() {
    auto* const floats = static_cast<float*>(buffer->data());
    decode->draw({.logits = floats,
                  .rows = 1,
                  .vocab = 64,
                  .ld = 64,
                  .draws = reinterpret_cast<const TokenDraw*>(floats + 4096),
                  .tokens = reinterpret_cast<int32_t*>(floats + 8192)});
  }

  /// A copy and a kernel, recorded, and started twice.
  Status run_graph(float* floats) {
    FS_ASSIGN(pinned, device->allocate_host(4096));
    device->wait(device->copy_in_async(floats, pinned->data(), 4096));
    device->begin_capture();
    device->copy_in_async(floats, pinned->data(), 4096);
    ops->add(floats, floats + 4096, floats + 8192, 4096);
    FS_ASSIGN(graph, device->end_capture());
    if (!graph) return device->sync();
    for (int i = 0; i < 2; ++i) device->launch(*graph);
    return device->sync();
  }
};

struct Outcome {
  Status status;
  size_t calls;  ///< until the work's own end
};

/// Everything is destroyed at the end of it.
Outcome run(const Path& plans = {}) {
  Work work;
  Status status = work.run(plans);
  return {std::move(status), card().calls().size()};
}

/// Products were tried before: what fails in a trial is another test's.
void fail_each_call(int code, bool lost, ErrorCode expected) {
  const Folder folder;
  card().reset();
  REQUIRE(run(folder.path).status.ok());
  card().reset();
  const Outcome whole = run(folder.path);
  REQUIRE_MESSAGE(whole.status.ok(), whole.status.error().message());
  REQUIRE(card().live().none());
  const std::vector<std::string> names = card().calls();
  CHECK(whole.calls > 30);
  for (size_t nth = 0; nth < whole.calls; nth++) {
    // Where memory cannot be pinned any other does, as another test shows.
    if (code == kOutOfMemory && names[nth] == "cudaHostAlloc") continue;
    card().reset();
    card().fail(int(nth), code, lost);
    const Outcome outcome = run(folder.path);
    const std::string what = "call " + std::to_string(nth) + ", " + names[nth];
    REQUIRE_MESSAGE(!outcome.status.ok(), what << " failed and nobody was told");
    const Error& error = outcome.status.error();
    CHECK_MESSAGE(error.message().find("failed: as the test's script says") != std::string::npos,
                  what << ": " << error.message());
    // A kernel that does not start is told by launch.h, which knows no card's state.
    if (names[nth].find("Launch") == std::string::npos &&
        names[nth].find("FuncSet") == std::string::npos)
      CHECK_MESSAGE(error.code == expected, what << ": " << error.message());
    CHECK_MESSAGE(card().live().none(), what << " leaves " << card().live().text());
  }
  card().reset();
}

}  // namespace

TEST_CASE("the plugin shows the card, its libraries and the driver's version") {
  const GpuInventory found = plugin().inventory();
  CHECK_FALSE(found.problem);
  REQUIRE(found.gpus.size() == 1);
  CHECK(found.gpus[0].name == "NVIDIA H200");
  CHECK(found.gpus[0].major == 9);
  CHECK(found.gpus[0].multiprocessors == 132);
  CHECK(found.driver == "13.0");
  REQUIRE(found.libraries.size() == 3);
  CHECK(found.libraries[0].version == "13.1.0");
}

TEST_CASE("work on the card allocates, copies, starts kernels, and gives everything back") {
  card().reset();
  const Outcome whole = run();
  REQUIRE_MESSAGE(whole.status.ok(), whole.status.error().message());
  CHECK(card().launches() >= 4);
  CHECK_MESSAGE(card().live().none(), card().live().text());
}

TEST_CASE("a decoding step's kernel may begin early behind its like, and behind nothing else") {
  card().reset();
  Work work;
  REQUIRE(work.run().ok());
  const std::vector<float> host(64, 0.0f);
  auto* const floats = static_cast<float*>(work.buffer->data());
  /// How the kernels that `then` starts were started: e early, p plainly.
  const auto started = [&](const auto& then) {
    const size_t before = card().calls().size();
    then();
    std::string how;
    const std::vector<std::string> calls = card().calls();
    for (size_t i = before; i < calls.size(); ++i)
      if (calls[i].find("LaunchKernel") != std::string::npos)
        how += calls[i] == "cudaLaunchKernelExC" ? 'e' : 'p';
    return how;
  };
  work.device->fill_zero(floats, 4096);
  CHECK(started([&] { work.draw(), work.draw(), work.draw(); }) == "pee");
  CHECK(started([&] { work.draw(); }) == "e");
  work.device->copy_in(floats, host.data(), 64);
  CHECK(started([&] { work.draw(); }) == "p");
  CHECK(started([&] { work.ops->add(floats, floats, floats, 64), work.draw(), work.draw(); }) ==
        "ppe");
  CHECK(work.device->sync().ok());
  CHECK(started([&] { work.draw(); }) == "p");
  work.device->begin_capture();
  CHECK(started([&] { work.draw(), work.draw(); }) == "pe");
  const auto graph = work.device->end_capture();
  REQUIRE(graph.ok());
  work.device->launch(**graph);
  CHECK(started([&] { work.draw(); }) == "p");
}

TEST_CASE("memory is zeroed before it is handed out") {
  card().reset();
  auto device = plugin().make_device(0, {});
  REQUIRE(device.ok());
  auto buffer = (*device)->allocate(1000);
  REQUIRE(buffer.ok());
  std::vector<char> host(1000, 7);
  (*device)->copy_out(host.data(), (*buffer)->data(), host.size());
  CHECK(std::count(host.begin(), host.end(), 0) == 1000);
}

TEST_CASE("shared memory is the card's like any other, and refused with its size") {
  card().reset();
  {
    const auto shared = plugin().allocate_shared(1000);
    REQUIRE(shared.ok());
    CHECK(card().live().allocations == 1);
  }
  CHECK(card().live().none());
  card().reset();
  card().fail(0, kOutOfMemory, false);
  const auto refused = plugin().allocate_shared(2 << 20);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().what.find("taking 2.0 MiB") != std::string::npos);
  card().reset();
}

TEST_CASE(
    "the host's memory for copies is pinned, outlives the device, and is any where none can be") {
  for (const bool pinned : {true, false}) {
    card().reset();
    auto device = plugin().make_device(0, {});
    REQUIRE(device.ok());
    CHECK_FALSE((*device)->host_memory());
    CHECK((*device)->available_memory() > size_t{70} << 30);
    const int before = card().live().allocations;
    card().reset();
    if (!pinned) card().fail(1, kOutOfMemory, false);
    auto memory = (*device)->allocate_host(1000);
    REQUIRE(memory.ok());
    CHECK(card().live().allocations == before + (pinned ? 1 : 0));
    CHECK((*device)->pinned((*memory)->data(), 1000) == pinned);
    CHECK_FALSE((*device)->pinned((*memory)->data(), 1001));
    CHECK((*device)->sync().ok());
    device->reset();
    static_cast<char*>((*memory)->data())[999] = 1;
    memory->reset();
    CHECK(card().live().none());
  }
  card().reset();
  auto device = plugin().make_device(0, {});
  REQUIRE(device.ok());
  card().reset();
  card().fail(1, kInvalidValue, false);
  CHECK_FALSE((*device)->allocate_host(1000).ok());
  device->reset();
  card().reset();
}

TEST_CASE("whichever call finds the memory exhausted, the work ends with that and nothing leaks") {
  fail_each_call(kOutOfMemory, false, ErrorCode::kResourceExhausted);
}

TEST_CASE("without room to try products in, they are multiplied by the library's first choice") {
  const Folder folder;
  card().reset();
  const Outcome tried = run(folder.path);
  REQUIRE(tried.status.ok());
  const std::vector<std::string> with = card().calls();
  card().reset();
  const Outcome known = run(folder.path);
  REQUIRE(known.status.ok());
  // The first run's calls that a known plan saves are the trials'; their first is an allocation.
  const std::vector<std::string> without = card().calls();
  const auto apart = std::mismatch(without.begin(), without.end(), with.begin(), with.end());
  const auto trial = std::find(apart.second, with.end(), "cudaMalloc");
  REQUIRE(trial != with.end());
  card().reset();
  card().fail(int(trial - with.begin()), kOutOfMemory, false);
  const Outcome outcome = run();
  CHECK_MESSAGE(outcome.status.ok(), outcome.status.error().message());
  CHECK(card().live().none());
  card().reset();
}

TEST_CASE("whichever call fails for once, the work ends with an error and nothing leaks") {
  fail_each_call(kInvalidValue, false, ErrorCode::kInternal);
}

TEST_CASE("a card that is lost at whichever call is told as lost, and nothing leaks") {
  fail_each_call(kLaunchFailure, true, ErrorCode::kUnavailable);
  fail_each_call(kEccUncorrectable, true, ErrorCode::kUnavailable);
}

TEST_CASE(
    "what cannot be captured ends in no graph and an error that names it, and nothing leaks") {
  card().reset();
  {
    auto device = plugin().make_device(0, {});
    REQUIRE(device.ok());
    auto buffer = (*device)->allocate(1000);
    REQUIRE(buffer.ok());
    char bytes[8] = {};
    const auto refuses = [&](const char* what, const auto& act) {
      (*device)->begin_capture();
      act();
      const auto graph = (*device)->end_capture();
      REQUIRE_FALSE(graph.ok());
      CHECK_MESSAGE(graph.error().what.find(what) != std::string::npos, graph.error().message());
      CHECK((*device)->sync().ok());
    };
    refuses("to allocate memory", [&] { CHECK_FALSE((*device)->allocate(8).ok()); });
    refuses("to free memory", [&] { buffer->reset(); });
    auto other = (*device)->allocate(1000);
    REQUIRE(other.ok());
    void* const memory = (*other)->data();
    refuses("that is not pinned", [&] { (*device)->copy_in(memory, bytes, 8); });
    refuses("a copy from the card", [&] { (*device)->copy_out(bytes, memory, 8); });
    refuses("to wait for the card", [&] { CHECK_FALSE((*device)->sync().ok()); });
    refuses("another capture", [&] { (*device)->begin_capture(); });
    (*device)->begin_capture();  // and a device that goes in the middle of one
    other->reset();
  }
  CHECK_MESSAGE(card().live().none(), card().live().text());
  card().reset();
}

TEST_CASE("a lost card stays lost, a call that failed once does not") {
  // All after which CUDA's documentation says that a process can do no more.
  constexpr int kLasting[] = {214, 220, 226, 700, 702, 714, 715, 716, 717, 718, 719, 721, 911};
  const auto check = [](int code, bool lost) {
    CAPTURE(code);
    card().reset();
    auto device = plugin().make_device(0, {});
    REQUIRE(device.ok());
    auto buffer = (*device)->allocate(1000);
    REQUIRE(buffer.ok());
    card().reset();
    card().fail(1, code, lost);
    const char byte = 1;
    (*device)->copy_in((*buffer)->data(), &byte, 1);
    const Status first = (*device)->sync();
    REQUIRE_FALSE(first.ok());
    CHECK((first.error().code == ErrorCode::kUnavailable) == lost);
    CHECK((*device)->sync().ok() == !lost);
  };
  for (const int code : kLasting) check(code, true);
  check(kInvalidValue, false);
  card().reset();
}

TEST_CASE("without room on the card the error names the size and what is free") {
  card().reset();
  auto device = plugin().make_device(0, {});
  REQUIRE(device.ok());
  card().reset();
  card().fail(1, kOutOfMemory, false);
  const auto buffer = (*device)->allocate(size_t{3} << 30);
  REQUIRE_FALSE(buffer.ok());
  CHECK(buffer.error().what.find("taking 3.0 GiB of the card's memory") != std::string::npos);
  CHECK(buffer.error().what.find("70.2 GiB are free") != std::string::npos);
  CHECK(buffer.error().hint.find("a smaller batch") != std::string::npos);
  card().reset();
}
