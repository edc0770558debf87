// Deployments on the emulated GPU, whose memory the host cannot reach.
#include <doctest/doctest.h>

#include <condition_variable>
#include <map>
#include <mutex>

#include "actors/serving_system.h"
#include "gpu/gpu_device.h"
#include "gpu/simt/emulated_runtime.h"
#include "model/huggingface.h"
#include "model/tokenizer.h"

using namespace fastserve;

namespace {

DeviceFactory gpu_of(size_t memory) {
  return [memory](int) -> Result<std::unique_ptr<Device>> {
    simt::Options options;
    options.own_memory = true;
    options.memory = memory;
    return gpu::make_gpu_device(simt::make_emulated_runtime(options));
  };
}

ServingSystem::Model model_named(const std::string& name, int kv_blocks = 0) {
  ServingSystem::Model model;
  model.name = name;
  model.version = "1";
  model.bundle =
      read_model_directory(Path(FASTSERVE_SOURCE_DIR) / "tests/data/reference/models" / name)
          .value();
  model.options.kv_blocks = kv_blocks;
  model.options.max_rows = 32;
  return model;
}

Result<std::shared_ptr<ServingSystem>> start(std::vector<ServingSystem::Model> models,
                                             size_t memory = size_t{1} << 30) {
  ServingSystem::Config config;
  config.models = std::move(models);
  config.lanes = 1;
  config.make_device = gpu_of(memory);
  config.limits.max_running = 4;
  return ServingSystem::start(std::move(config));
}

/// The tokens of some requests that run at once, each of the named model.
std::vector<std::vector<int32_t>> answers(ServingSystem& system,
                                          const std::vector<std::string>& models) {
  std::mutex mutex;
  std::condition_variable changed;
  size_t ended = 0;
  std::vector<std::vector<int32_t>> tokens(models.size());
  for (size_t i = 0; i < models.size(); ++i) {
    GenerateRequest request;
    request.model = models[i];
    for (size_t t = 0; t < 5 + 7 * i; ++t)
      request.prompt_tokens.push_back(static_cast<int32_t>(3 + t * (i + 1)));
    request.max_tokens = 24;
    request.ignore_eos = true;
    request.sampling.temperature = i % 2 == 0 ? 0 : 0.8;
    request.sampling.seed = i;
    if (i == 2) request.sampling.repetition_penalty = 1.2;  // drawn on the host
    const auto sink = [&, i](std::vector<GenerateEvent> events) {
      const std::lock_guard lock(mutex);
      for (const GenerateEvent& e : events) {
        for (const GeneratedToken& t : e.tokens) tokens[i].push_back(t.token);
        ended += e.finish != FinishReason::kNone;
      }
      changed.notify_all();
    };
    REQUIRE(system.submit(request, sink).ok());
  }
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return ended == models.size(); });
  return tokens;
}

}  // namespace

TEST_CASE("two models on one GPU answer as each does alone there") {
  const auto both = start({model_named("llama3-tiny"), model_named("gpt2-tiny")});
  REQUIRE_MESSAGE(both.ok(), both.error().message());
  const auto together = answers(**both, {"llama3-tiny", "gpt2-tiny", "llama3-tiny", "gpt2-tiny"});
  for (const char* name : {"llama3-tiny", "gpt2-tiny"}) {
    const auto one = start({model_named(name)});
    REQUIRE(one.ok());
    const auto alone = answers(**one, {name, name, name, name});
    for (const size_t i : {size_t{0}, size_t{1}, size_t{2}, size_t{3}})
      if ((i % 2 == 0) == (std::string(name) == "llama3-tiny")) CHECK(together[i] == alone[i]);
  }
}

TEST_CASE("answers that give way to each other on a GPU are those that had room") {
  std::map<uint64_t, std::vector<int32_t>> roomy;
  for (const int blocks : {60, 5}) {
    const auto device = gpu_of(size_t{1} << 30)(1).value();
    const ServingSystem::Model model = model_named("llama3-tiny");
    DecoderOptions options = model.options;
    options.kv_blocks = blocks;
    Engine engine(Decoder::load(*device, model.bundle, options).value(),
                  Tokenizer::from_json(model.bundle.documents.at("tokenizer.json"), "").value(),
                  {.max_running = 4});
    for (uint64_t i = 1; i <= 3; ++i) {
      GenerateRequest request;
      request.prompt_tokens.assign(5 + 7 * i, static_cast<int32_t>(10 * i));
      request.max_tokens = 24;
      request.ignore_eos = true;
      request.sampling.seed = i;
      REQUIRE(engine.submit({i}, engine.check(request).value(), Nanoseconds{0}).ok());
    }
    std::map<uint64_t, std::vector<int32_t>> tokens;
    while (engine.has_work())
      for (const GenerateEvent& e : engine.step(Nanoseconds{0}))
        for (const GeneratedToken& t : e.tokens) tokens[e.request.value].push_back(t.token);
    if (roomy.empty()) roomy = tokens;
    CHECK(tokens == roomy);
    CHECK(tokens[3].size() == 24);
    CHECK((engine.health().tokens_parked > 0) == (blocks == 5));
    CHECK(engine.decoder().graph_steps() > 20);
  }
}

TEST_CASE("models that do not fit a card together are refused with what does") {
  const std::vector<ServingSystem::Model> models = {model_named("llama3-tiny"),
                                                    model_named("qwen3-tiny")};
  const auto refused = start(models, 1 << 19);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kResourceExhausted);
  CHECK(refused.error().where.find("emulated") != std::string::npos);
  const std::string& what = refused.error().what;
  CHECK_MESSAGE(what.find("serving needs") != std::string::npos, what);
  const bool names_what_fits = what.find("a context of ") != std::string::npos ||
                               what.find("the first 1 of the 2 models fit") != std::string::npos ||
                               what.find("the weights alone are too large") != std::string::npos;
  CHECK_MESSAGE(names_what_fits, what);
  // Whatever the card, a model is refused with that or answers.
  for (size_t memory = 1 << 19;; memory += 1 << 18) {
    REQUIRE(memory < size_t{64} << 20);
    const auto system = start({models[0]}, memory);
    if (!system.ok()) {
      CHECK(system.error().code == ErrorCode::kResourceExhausted);
      continue;
    }
    CHECK(answers(**system, {"llama3-tiny", "llama3-tiny", "llama3-tiny"})[0].size() == 24);
    break;
  }
}
