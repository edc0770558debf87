// Models with recorded truth, in the emulated GPU's own memory.
#include <doctest/doctest.h>

#include <cmath>

#include "base/clock.h"
#include "compress/calibration.h"
#include "compress/measure.h"
#include "cpu/cpu_device.h"
#include "gpu/gpu_device.h"
#include "gpu/simt/emulated_runtime.h"
#include "model/huggingface.h"
#include "model/transformer/parity.h"

namespace fastserve {
namespace {

/// Kernels are refused the host's memory, and the host the card's.
std::unique_ptr<Device> whole_gpu() {
  simt::Options options;
  options.own_memory = true;
  return gpu::make_gpu_device(simt::make_emulated_runtime(options));
}

Path model_named(const char* name) {
  return Path(FASTSERVE_SOURCE_DIR) / "tests/data/reference/models" / name;
}

}  // namespace

TEST_CASE("the emulated GPU computes what Hugging Face computes, in memory the host cannot reach") {
  for (const char* name : {"gpt2-tiny", "llama3-tiny", "mistral-tiny", "qwen3-tiny"}) {
    const auto device = whole_gpu();
    const auto parity = check_model(model_named(name), *device, {.bf16 = true});
    REQUIRE_MESSAGE(parity.ok(), name << ": " << parity.error().message());
    CHECK(parity->checks.size() > 5);
    for (const ParityCheck& check : parity->checks)
      CHECK_MESSAGE(check.passed, name, ": ", check.quantity, " is ", check.error, ", not within ",
                    check.tolerance, " (", check.note, ")");
  }
}

TEST_CASE("what compression asks of a device it gets from a GPU: channel norms and perplexity") {
  const ModelBundle bundle = read_model_directory(model_named("llama3-tiny")).value();
  std::vector<std::vector<int32_t>> text(2, std::vector<int32_t>(20));
  for (int i = 0; i < 40; i++)
    text[static_cast<size_t>(i / 20)][static_cast<size_t>(i % 20)] = i * 11;
  const auto gpu = whole_gpu(), cpu = make_reference_device();
  const auto ours = calibrate(*gpu, bundle, text, nullptr);
  const auto truth = calibrate(*cpu, bundle, text, nullptr);
  REQUIRE_MESSAGE(ours.ok(), ours.error().message());
  const char* const name = "model.layers.1.mlp.down_proj.weight";
  const std::vector<double> expected = truth->norms(name), got = ours->norms(name);
  REQUIRE(expected.size() == 176);
  REQUIRE(got.size() == 176);
  for (size_t c = 0; c < got.size(); c++)
    CHECK(got[c] == doctest::Approx(expected[c]).epsilon(1e-4));
  MeasureOptions options;
  options.weights = WeightFormat::kFloat32;
  options.kv = KvType::kFloat32;
  options.speed_tokens = 2;
  options.speed_rounds = 1;
  options.speed_seconds = 0;
  const auto measured = measure_model(*gpu, SystemClock(), bundle, text, options);
  REQUIRE_MESSAGE(measured.ok(), measured.error().message());
  CHECK(
      measured->perplexity ==
      doctest::Approx(measure_model(*cpu, SystemClock(), bundle, text, options).value().perplexity)
          .epsilon(1e-4));
}

}  // namespace fastserve
