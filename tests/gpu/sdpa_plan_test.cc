// cuDNN's own planning against the description of a card that is not here.
#include "gpu/cuda/sdpa_plan.h"

#include <dlfcn.h>
#include <doctest/doctest.h>

#include <cstdlib>

#include "base/file.h"

using namespace fastserve;
using namespace fastserve::gpu;

namespace {

const SdpaTarget& h200() {
  static const SdpaTarget target = [] {
    // cuDNN looks for a driver's functions, and plans as on a machine whose driver does not start.
    ::setenv("FASTSERVE_STUB_DRIVER", "cuInit=34", 1);
    REQUIRE(::dlopen(FASTSERVE_STAND_IN_DRIVER, RTLD_NOW | RTLD_LOCAL) != nullptr);
    auto json = read_file(Path(FASTSERVE_SOURCE_DIR) / "tests/data/gpu/h200.json");
    REQUIRE(json.ok());
    return SdpaTarget{nullptr, *json};
  }();
  return target;
}

/// Null, with a word, where there is no cuDNN to plan with.
const Cudnn* library() {
  h200();
  if (cudnn().table == nullptr) MESSAGE("skipped: cuDNN " << cudnn().found.problem);
  return cudnn().table;
}

}  // namespace

TEST_CASE("cuDNN plans causal attention, forward and backward, for the shapes that models have") {
  if (library() == nullptr) return;
  const SdpaShape shapes[] = {
      {32, 1024, {12, 12, 64}},                      // GPT-2 124M
      {2, 2048, {32, 8, 128}},                       // Llama 3
      {1, 4096, {16, 8, 128}, Precision::kFloat16},  // Qwen3
  };
  for (const SdpaShape& shape : shapes)
    for (const SdpaPass pass : {SdpaPass::kForward, SdpaPass::kBackward}) {
      const auto plan = SdpaPlan::make(*library(), shape, pass, h200());
      REQUIRE_MESSAGE(plan.ok(), plan.error().message());
      CHECK(plan->engine() >= 0);
      CHECK(plan->workspace_bytes() >= 0);
    }
}

// The algorithm that adds nothing up in memory keeps the gradients of all scores there instead.
TEST_CASE("backward, cuDNN's plan is that of the algorithm that keeps its bits") {
  if (library() == nullptr) return;
  const SdpaShape shape{4, 1024, {12, 12, 64}};
  const auto room = [&](SdpaPass pass) {
    const auto plan = SdpaPlan::make(*library(), shape, pass, h200());
    REQUIRE_MESSAGE(plan.ok(), plan.error().message());
    return plan->workspace_bytes();
  };
  const int64_t scores = shape.sequences * 12 * shape.tokens * shape.tokens * 2;
  CHECK(room(SdpaPass::kBackward) >= scores);
  CHECK(room(SdpaPass::kBackwardAtomic) < scores);
}

TEST_CASE("a shape that cuDNN has no kernel for is refused with its words, not with a crash") {
  if (library() == nullptr) return;
  const auto plan = SdpaPlan::make(*library(), {1, 128, {3, 2, 7}}, SdpaPass::kForward, h200());
  REQUIRE_FALSE(plan.ok());
  CHECK(plan.error().code == ErrorCode::kUnsupported);
  CHECK(plan.error().where == "cuDNN");
}

TEST_CASE("a description of a card that is no JSON is refused") {
  if (library() == nullptr) return;
  CHECK_FALSE(
      SdpaPlan::make(*library(), {1, 128, {4, 4, 64}}, SdpaPass::kForward, {nullptr, "not a card"})
          .ok());
}
