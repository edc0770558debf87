// Requests that come while a model's weights are still on their way to the emulated GPU.
#include <doctest/doctest.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "actors/serving_system.h"
#include "gpu/gpu_device.h"
#include "gpu/simt/emulated_runtime.h"
#include "model/huggingface.h"
#include "model/tokenizer.h"
#include "tests/actors_serve/listener.h"

using namespace fastserve;

namespace {

DeviceFactory gpu_of(const simt::Options& options) {
  return [options](int) -> Result<std::unique_ptr<Device>> {
    return gpu::make_gpu_device(simt::make_emulated_runtime(options));
  };
}
simt::Options own_memory() {
  simt::Options options;
  options.own_memory = true;
  return options;
}

ModelBundle bundle_named(const std::string& name) {
  return read_model_directory(Path(FASTSERVE_SOURCE_DIR) / "tests/data/reference/models" / name)
      .value();
}

/// The model's tensors, one of which nobody gets before the gate is opened.
class Gate final : public TensorSource {
 public:
  Gate(std::shared_ptr<const TensorSource> tensors, std::string shut)
      : tensors_(std::move(tensors)), shut_(std::move(shut)) {}
  std::vector<std::string> names() const override { return tensors_->names(); }
  bool contains(std::string_view name) const override { return tensors_->contains(name); }
  std::string where() const override { return tensors_->where(); }
  Result<TensorView> tensor(std::string_view name) const override {
    if (name == shut_) {
      std::unique_lock lock(mutex_);
      reached_ = true;
      changed_.notify_all();
      changed_.wait(lock, [&] { return open_; });
      if (failure_) return *failure_;
    }
    return tensors_->tensor(name);
  }
  void wait_until_reached() const {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return reached_; });
  }
  void open(std::optional<Error> failure = {}) {
    const std::lock_guard lock(mutex_);
    open_ = true;
    failure_ = std::move(failure);
    changed_.notify_all();
  }

 private:
  const std::shared_ptr<const TensorSource> tensors_;
  const std::string shut_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  mutable bool reached_ = false;
  bool open_ = false;
  std::optional<Error> failure_;
};

GenerateRequest request_of(const std::string& model, int prompt = 9) {
  GenerateRequest request;
  request.model = model;
  for (int t = 0; t < prompt; ++t) request.prompt_tokens.push_back(3 + 2 * t);
  request.max_tokens = 6;
  request.ignore_eos = true;
  request.sampling.temperature = 0;
  return request;
}

ServingSystem::Config config_of(std::vector<std::pair<std::string, ModelBundle>> models) {
  ServingSystem::Config config;
  config.lanes = 1;
  config.make_device = gpu_of(own_memory());
  config.limits.max_running = 4;
  for (auto& [name, bundle] : models) {
    ServingSystem::Model model;
    model.name = name;
    model.version = "1";
    model.bundle = std::move(bundle);
    model.options.max_rows = 8;  // a prompt takes several steps
    config.models.push_back(std::move(model));
  }
  return config;
}

Answer ask(ServingSystem& system, const std::string& model) {
  Listener listener;
  REQUIRE(system.submit(request_of(model), listener.sink()).ok());
  return listener.wait();
}

constexpr const char* kLastLayer = "model.layers.1.mlp.down_proj.weight";

}  // namespace

TEST_CASE("a request that comes before the last layer does has the answer of one that waits") {
  const ModelBundle bundle = bundle_named("llama3-tiny");
  auto waited = ServingSystem::start(config_of({{"llama", bundle}}));
  REQUIRE_MESSAGE(waited.ok(), waited.error().message());
  CHECK((*waited)->health().ready);
  CHECK((*waited)->models().at(0).weight_bytes > 0);
  const Answer expected = ask(**waited, "llama");
  CHECK(expected.tokens.size() == 6);

  const auto gate = std::make_shared<Gate>(bundle.tensors, kLastLayer);
  auto system = ServingSystem::open(config_of({{"llama", {bundle.documents, gate}}}));
  REQUIRE_MESSAGE(system.ok(), system.error().message());
  CHECK_FALSE((*system)->health().ready);
  Listener early, another;
  REQUIRE((*system)->submit(request_of("llama"), early.sink()).ok());
  gate->wait_until_reached();
  REQUIRE((*system)->submit(request_of("llama"), another.sink()).ok());
  gate->open();
  CHECK((*system)->wait_until_loaded().ok());
  CHECK((*system)->health().ready);
  CHECK(early.wait().tokens == expected.tokens);
  CHECK(another.wait().tokens == expected.tokens);
}

TEST_CASE("what goes wrong with the last layer ends the requests that came before it") {
  const ModelBundle bundle = bundle_named("llama3-tiny");
  const auto gate = std::make_shared<Gate>(bundle.tensors, kLastLayer);
  auto system = ServingSystem::open(config_of({{"llama", {bundle.documents, gate}}})).value();
  Listener early;
  REQUIRE(system->submit(request_of("llama"), early.sink()).ok());
  gate->wait_until_reached();
  gate->open(Error{ErrorCode::kCorrupt, "a block is damaged", kLastLayer, ""});
  const Status loaded = system->wait_until_loaded();
  REQUIRE_FALSE(loaded.ok());
  CHECK(loaded.error().code == ErrorCode::kCorrupt);
  CHECK_FALSE(system->health().ready);
  for (const Answer& answer : {early.wait(), ask(*system, "llama")}) {
    CHECK(answer.tokens.empty());
    CHECK(answer.ends == 1);
    CHECK(answer.finish == FinishReason::kError);
    REQUIRE(answer.error.has_value());
    CHECK(answer.error->code == ErrorCode::kCorrupt);
  }
}

TEST_CASE("a server that is stopped in the middle of a load takes no more of it") {
  const ModelBundle bundle = bundle_named("llama3-tiny");
  for (const bool asked : {false, true}) {
    CAPTURE(asked);
    const auto gate = std::make_shared<Gate>(bundle.tensors, "model.layers.0.mlp.down_proj.weight");
    auto system = ServingSystem::open(config_of({{"llama", {bundle.documents, gate}}})).value();
    Listener early;
    if (asked) REQUIRE(system->submit(request_of("llama"), early.sink()).ok());
    gate->wait_until_reached();
    std::thread stopper([&] { system->stop(ServingSystem::Stop::kCancel); });
    while (system->submit(request_of("llama"), [](auto) {}).ok()) std::this_thread::yield();
    gate->open();
    stopper.join();
    const Status loaded = system->wait_until_loaded();
    REQUIRE_FALSE(loaded.ok());
    const ErrorCode code = loaded.error().code;
    CHECK((code == ErrorCode::kUnavailable || code == ErrorCode::kCancelled));
    if (!asked) continue;
    CHECK(early.wait().finish == FinishReason::kCancelled);
    CHECK(early.wait().ends == 1);
  }
}

TEST_CASE("models are loaded one after another, and each answers who came before") {
  const ModelBundle one = bundle_named("llama3-tiny"), two = bundle_named("qwen3-tiny");
  const auto gate = std::make_shared<Gate>(two.tensors, kLastLayer);
  auto system =
      ServingSystem::open(config_of({{"one", one}, {"two", {two.documents, gate}}})).value();
  Listener first, second, late;
  REQUIRE(system->submit(request_of("two"), second.sink()).ok());
  REQUIRE(system->submit(request_of("one"), first.sink()).ok());
  gate->wait_until_reached();  // the first is there
  REQUIRE(system->submit(request_of("one"), late.sink()).ok());
  gate->open();
  CHECK(system->wait_until_loaded().ok());
  const auto alone = [](const std::string& name, const ModelBundle& bundle) {
    return ask(**ServingSystem::start(config_of({{name, bundle}})), name).tokens;
  };
  CHECK(first.wait().tokens == alone("one", one));
  CHECK(late.wait().tokens == first.wait().tokens);
  CHECK(second.wait().tokens == alone("two", two));
}

TEST_CASE("two servers load on cards of their own at once") {
  const ModelBundle bundle = bundle_named("llama3-tiny");
  std::vector<std::thread> threads;
  std::vector<Answer> answers(2);
  for (Answer& answer : answers)
    threads.emplace_back([&] {
      const auto system = ServingSystem::open(config_of({{"llama", bundle}})).value();
      answer = ask(*system, "llama");
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(answers[0].tokens.size() == 6);
  CHECK(answers[0].tokens == answers[1].tokens);
}

TEST_CASE("wherever a card is lost or full during a load with a request, no false token is given") {
  const ModelBundle bundle = bundle_named("llama3-tiny");
  DecoderOptions decoding;
  decoding.kv_blocks = 4;
  decoding.max_rows = 16;
  const auto tokenizer = Tokenizer::from_json(bundle.documents.at("tokenizer.json"), "").value();
  /// The answer of a request that was there first; nothing: the decoder could not be begun.
  const auto answer = [&](const simt::Options& options) -> std::optional<Answer> {
    const auto device = gpu_of(options)(1).value();
    auto decoder = Decoder::begin(*device, bundle, decoding);
    if (!decoder.ok()) return std::nullopt;
    Engine engine(*std::move(decoder), tokenizer, {.max_running = 4});
    REQUIRE(engine.submit({1}, engine.check(request_of("")).value(), Nanoseconds{0}).ok());
    Answer out;
    while (engine.has_work() || engine.loading())
      for (const GenerateEvent& e : engine.step(Nanoseconds{0})) {
        for (const GeneratedToken& t : e.tokens) out.tokens.push_back(t.token);
        out.finish = e.finish;
        out.ends += e.finish != FinishReason::kNone;
        out.error = e.error;
      }
    return out;
  };
  const Answer whole = answer(own_memory()).value();
  REQUIRE(whole.tokens.size() == 6);
  const auto holds = [&](const Answer& a) {
    CHECK(a.ends == 1);
    CHECK(a.error.has_value() == (a.finish == FinishReason::kError));
    REQUIRE(a.tokens.size() <= whole.tokens.size());
    for (size_t i = 0; i < a.tokens.size(); ++i) CHECK(a.tokens[i] == whole.tokens[i]);
    return a.finish == FinishReason::kLength;
  };
  simt::Options options = own_memory();
  bool done = false;
  for (options.launches = 1; !done; options.launches += options.launches < 60 ? 1 : 7) {
    CAPTURE(options.launches);
    done = holds(answer(options).value());
  }
  options = own_memory();
  done = false;
  for (options.memory = 64 << 10; !done; options.memory += 16 << 10) {
    CAPTURE(options.memory);
    REQUIRE(options.memory < size_t{64} << 20);
    if (const auto a = answer(options)) done = holds(*a);
  }
}
