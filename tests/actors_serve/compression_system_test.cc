#include "actors/compression_system.h"

#include <doctest/doctest.h>

#include <new>
#include <thread>

#include "model/huggingface.h"

using namespace fastserve;

namespace {

ModelBundle tiny_model() {
  return read_model_directory(Path(FASTSERVE_SOURCE_DIR) / "tests/data/reference/models/gpt2-tiny")
      .value();
}

CompressorHooks fixed_figures() {
  CompressorHooks hooks;
  hooks.measure = [](const ModelBundle&) -> Result<Measurement> {
    return Measurement{.bytes = 1000, .perplexity = 8, .tokens_per_second = 100};
  };
  return hooks;
}

}  // namespace

TEST_CASE("a compression runs on the compressor's thread and its outcome comes back") {
  std::thread::id where;
  double last = -1;
  CompressorHooks hooks = fixed_figures();
  hooks.progress = [&](std::string_view, double fraction) {
    where = std::this_thread::get_id();
    last = fraction;
  };
  const auto made = run_compression(tiny_model(), hooks, {});
  REQUIRE_MESSAGE(made.ok(), made.error().message());
  CHECK(made->after.perplexity == 8);
  CHECK_FALSE(bundle_weight_formats(made->bundle).value().empty());
  CHECK(last >= 0);
  CHECK(where != std::this_thread::get_id());
}

TEST_CASE("a compression that is cancelled, or refused, says so") {
  CancelFlag cancel;
  cancel.raise();
  CompressorHooks hooks = fixed_figures();
  hooks.cancel = &cancel;
  CHECK(run_compression(tiny_model(), hooks, {}).error().code == ErrorCode::kCancelled);
  CompressSpec broken;
  broken.max_perplexity = 7;
  CHECK(run_compression(tiny_model(), fixed_figures(), broken).error().code ==
        ErrorCode::kContractBroken);
}

TEST_CASE("a compressor that dies is an error, not silence") {
  CompressorHooks hooks = fixed_figures();
  hooks.measure = [](const ModelBundle&) -> Result<Measurement> { throw std::bad_alloc(); };
  const auto made = run_compression(tiny_model(), hooks, {});
  REQUIRE_FALSE(made.ok());
  CHECK(made.error().code == ErrorCode::kUnavailable);
  CHECK(made.error().what.find("bad_alloc") != std::string::npos);
}
