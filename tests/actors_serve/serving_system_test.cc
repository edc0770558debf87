#include "actors/serving_system.h"

#include <doctest/doctest.h>

#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <new>
#include <thread>

#include "base/json.h"
#include "model/huggingface.h"
#include "tests/serve/fake_model.h"
#include "tests/thread_count.h"

using namespace fastserve;

namespace {

/// Collects one request's events and lets the test wait for them.
class Listener {
 public:
  GenerateService::Sink sink() {
    return [this](std::vector<GenerateEvent> events) {
      const std::lock_guard lock(mutex_);
      for (GenerateEvent& e : events) events_.push_back(std::move(e));
      changed_.notify_all();
    };
  }
  void wait_events(size_t n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return events_.size() >= n; });
  }
  GenerateEvent wait_end() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock,
                  [&] { return !events_.empty() && events_.back().finish != FinishReason::kNone; });
    return events_.back();
  }
  std::string text() {
    const std::lock_guard lock(mutex_);
    std::string out;
    for (const GenerateEvent& e : events_) out += e.text;
    return out;
  }
  int ends() {
    const std::lock_guard lock(mutex_);
    int n = 0;
    for (const GenerateEvent& e : events_) n += e.finish != FinishReason::kNone;
    return n;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<GenerateEvent> events_;
};

/// Holds the model's steps until it is opened.
class Gate {
 public:
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void pass() {
    std::unique_lock lock(mutex_);
    ++arrivals_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
  }
  void wait_arrival() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return arrivals_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  int arrivals_ = 0;
};

/// The fake model behind a gate; may break on its first step.
class GatedDecoder final : public Decoder {
 public:
  GatedDecoder(std::shared_ptr<Gate> gate, bool breaks)
      : inner_({.vocab = 300, .blocks = 64}, std::make_shared<FakeRecord>()),
        gate_(std::move(gate)),
        breaks_(breaks) {}
  const ModelConfig& config() const override { return inner_.config(); }
  const DecoderOptions& options() const override { return inner_.options(); }
  size_t weight_bytes() const override { return 0; }
  size_t kv_bytes() const override { return 0; }
  Result<std::span<const float>> step(std::span<const int32_t> tokens,
                                      std::span<const Segment> segments,
                                      std::span<const int32_t> wanted) override {
    if (gate_) gate_->pass();
    if (breaks_) throw std::bad_alloc();
    return inner_.step(tokens, segments, wanted);
  }
  Result<std::vector<double>> score(std::span<const int32_t>, std::span<const int32_t>) override {
    return std::vector<double>();
  }

 private:
  FakeDecoder inner_;
  std::shared_ptr<Gate> gate_;
  bool breaks_;
};

struct Options {
  std::vector<std::string> names = {"fake"};
  std::shared_ptr<Gate> gate = nullptr;
  bool breaks = false;
  int max_running = 8, max_queue = 100;
};

std::shared_ptr<ServingSystem> serve(const Options& options = {}) {
  ServingSystem::Config config;
  config.max_queue = options.max_queue;
  config.limits.max_running = options.max_running;
  SchedulerLimits limits = config.limits;
  limits.max_waiting = 1000;
  std::vector<ServingSystem::LoadedModel> models;
  for (const std::string& name : options.names) {
    ServingSystem::LoadedModel model;
    model.info.name = name;
    model.info.version = "1";
    model.engine =
        std::make_unique<Engine>(std::make_unique<GatedDecoder>(options.gate, options.breaks),
                                 std::make_shared<ByteTokenizer>(), limits);
    models.push_back(std::move(model));
  }
  return ServingSystem::serve(std::move(config), std::move(models), nullptr, "fake").value();
}

GenerateRequest request(const std::string& prompt, int max_tokens = 8) {
  GenerateRequest r;
  r.prompt = prompt;
  r.max_tokens = max_tokens;
  r.sampling.temperature = 0;
  return r;
}

}  // namespace

TEST_CASE("a request's events end with one last event") {
  const auto system = serve();
  Listener listener;
  REQUIRE(system->submit(request("hello", 12), listener.sink()).ok());
  const GenerateEvent last = listener.wait_end();
  CHECK(last.finish == FinishReason::kLength);
  CHECK(last.generated_tokens == 12);
  CHECK(last.prompt_tokens == 5);
  system->stop(ServingSystem::Stop::kDrain);
  CHECK(listener.ends() == 1);
  CHECK(system->health().requests_finished == 1);
  CHECK(system->health().tokens_generated == 12);
  CHECK(system->health().kv_blocks_free == 64);
}

TEST_CASE("requests from many threads are all answered, each as if it were alone") {
  const auto system = serve();
  std::vector<std::string> alone(4);
  for (size_t i = 0; i < 4; ++i) {
    Listener listener;
    REQUIRE(system->submit(request(std::string(1 + i, 'x')), listener.sink()).ok());
    listener.wait_end();
    alone[i] = listener.text();
  }
  std::vector<std::thread> clients;
  std::vector<std::string> found(16);
  for (size_t i = 0; i < 16; ++i)
    clients.emplace_back([&, i] {
      Listener listener;
      if (!system->submit(request(std::string(1 + i % 4, 'x')), listener.sink()).ok()) return;
      listener.wait_end();
      found[i] = listener.text();
    });
  for (std::thread& client : clients) client.join();
  for (size_t i = 0; i < 16; ++i) CHECK(found[i] == alone[i % 4]);
}

TEST_CASE("a cancelled request ends as cancelled, and unknown ids are ignored") {
  const auto gate = std::make_shared<Gate>();
  const auto system = serve({.gate = gate});
  Listener listener;
  const RequestId id = system->submit(request("a", 40), listener.sink()).value();
  gate->wait_arrival();
  system->cancel(id);
  system->cancel({id.value + 1000});
  gate->open();
  CHECK(listener.wait_end().finish == FinishReason::kCancelled);
  system->cancel(id);
  system->stop(ServingSystem::Stop::kDrain);
  CHECK(listener.ends() == 1);
}

TEST_CASE("draining answers everything that was accepted, and takes no more") {
  const auto gate = std::make_shared<Gate>();
  const auto system = serve({.gate = gate});
  std::vector<std::unique_ptr<Listener>> listeners;
  for (int i = 0; i < 20; ++i) {
    listeners.push_back(std::make_unique<Listener>());
    REQUIRE(system->submit(request("a", 5 + i), listeners.back()->sink()).ok());
  }
  gate->open();
  system->stop(ServingSystem::Stop::kDrain);
  for (const auto& listener : listeners) {
    CHECK(listener->ends() == 1);
    CHECK(listener->wait_end().finish == FinishReason::kLength);
  }
  const auto late = system->submit(request("a"), listeners[0]->sink());
  REQUIRE_FALSE(late.ok());
  CHECK(late.error().code == ErrorCode::kUnavailable);
  CHECK_FALSE(system->health().ready);
}

TEST_CASE("draining ends at its patience, and what is left can then be cancelled") {
  const auto gate = std::make_shared<Gate>();
  const auto system = serve({.gate = gate});
  Listener listener;
  REQUIRE(system->submit(request("a", 60), listener.sink()).ok());
  gate->wait_arrival();
  CHECK_FALSE(system->stop(ServingSystem::Stop::kDrain, std::chrono::milliseconds(1)));
  CHECK(system->submit(request("a"), listener.sink()).error().code == ErrorCode::kUnavailable);
  gate->open();
  CHECK(system->stop(ServingSystem::Stop::kCancel));
  CHECK(listener.ends() == 1);
}

TEST_CASE("destroying the system cancels what runs and leaves no thread") {
  const auto before = thread_ids();
  std::vector<std::unique_ptr<Listener>> listeners;
  {
    const auto one = serve(), other = serve();
    for (int i = 0; i < 30; ++i) {
      listeners.push_back(std::make_unique<Listener>());
      REQUIRE((i % 2 ? one : other)->submit(request("a", 60), listeners.back()->sink()).ok());
    }
  }
  CHECK(threads_left_since(before) == 0);
  for (const auto& listener : listeners) CHECK(listener->ends() == 1);
}

TEST_CASE("a full queue refuses at once, and has room again when requests end") {
  const auto gate = std::make_shared<Gate>();
  const auto system = serve({.gate = gate, .max_running = 1, .max_queue = 2});
  std::vector<std::unique_ptr<Listener>> listeners;
  for (int i = 0; i < 3; ++i) {
    listeners.push_back(std::make_unique<Listener>());
    REQUIRE(system->submit(request("a"), listeners.back()->sink()).ok());
  }
  Listener extra;
  const auto fourth = system->submit(request("a"), extra.sink());
  REQUIRE_FALSE(fourth.ok());
  CHECK(fourth.error().code == ErrorCode::kResourceExhausted);
  gate->open();
  system->stop(ServingSystem::Stop::kDrain);
  for (const auto& listener : listeners) CHECK(listener->ends() == 1);
}

TEST_CASE("a model that breaks ends its requests with an error instead of silence") {
  const auto gate = std::make_shared<Gate>();
  const auto system = serve({.gate = gate, .breaks = true});
  Listener first, second;
  REQUIRE(system->submit(request("a"), first.sink()).ok());
  REQUIRE(system->submit(request("b"), second.sink()).ok());
  gate->open();
  const GenerateEvent last = first.wait_end();
  CHECK(last.finish == FinishReason::kError);
  REQUIRE(last.error);
  CHECK(last.error->code == ErrorCode::kUnavailable);
  CHECK(last.error->what.find("bad_alloc") != std::string::npos);
  system->stop(ServingSystem::Stop::kDrain);
  CHECK(first.ends() == 1);
  CHECK_FALSE(system->submit(request("a"), first.sink()).ok());
}

TEST_CASE("models are found by name, by name and version, or by being the only one") {
  const auto one = serve();
  CHECK(one->tokenise("", "hi", false).value() == std::vector<int32_t>{'h', 'i'});
  CHECK(one->detokenise("fake@1", std::vector<int32_t>{'h', 'i'}).value() == "hi");
  const auto two = serve({.names = {"left", "right"}});
  CHECK(two->models().size() == 2);
  CHECK(two->tokenise("right", "x", false).ok());
  CHECK(two->tokenise("", "x", false).error().code == ErrorCode::kInvalidArgument);
  CHECK(two->tokenise("right@7", "x", false).error().code == ErrorCode::kNotFound);
  GenerateRequest r = request("a");
  r.model = "left";
  Listener left, right;
  REQUIRE(two->submit(r, left.sink()).ok());
  r.model = "right";
  REQUIRE(two->submit(r, right.sink()).ok());
  left.wait_end();
  right.wait_end();
  CHECK(left.text() == right.text());
  const std::vector<std::pair<std::string, std::string>> turns = {{"user", "Hi"}};
  const ChatPrompt chat = two->format_chat("left", turns).value();
  CHECK(chat.text == "user: Hi\nassistant:");
  CHECK(chat.stop == std::vector<std::string>{"\nuser:"});
}

TEST_CASE("a model loaded from its directory answers as Hugging Face does") {
  const Path path = Path(FASTSERVE_SOURCE_DIR) / "tests/data/reference/models/qwen3-tiny";
  ServingSystem::Config config;
  config.lanes = 2;
  ServingSystem::Model model;
  model.name = "qwen";
  model.version = "3";
  model.bundle = read_model_directory(path).value();
  model.options.weights = WeightFormat::kFloat32;
  model.options.kv = KvType::kFloat32;
  config.models.push_back(model);
  double progress = -1;
  config.progress = [&](double p) {
    CHECK(p >= progress);
    progress = p;
  };
  const auto system = ServingSystem::start(config);
  REQUIRE_MESSAGE(system.ok(), system.error().message());
  CHECK(progress == 1.0);
  const ServedModel info = (*system)->models().at(0);
  CHECK(info.context_length == 128);
  CHECK(info.weight_format == "f32");
  CHECK(info.weight_bytes > 0);
  CHECK((*system)->health().device.find("cpu") != std::string::npos);

  const Json reference =
      *Json::parse(read_file(path / "reference.json").value(), "reference.json")->find("greedy");
  GenerateRequest r;
  for (const Json& id : reference.find("prompt")->as_array())
    r.prompt_tokens.push_back(static_cast<int32_t>(id.as_int()));
  r.max_tokens = 32;
  r.ignore_eos = true;
  r.sampling.temperature = 0;
  Listener listener;
  REQUIRE((*system)->submit(r, listener.sink()).ok());
  CHECK(listener.wait_end().generated_tokens == 32);
  CHECK(listener.text() == reference.find("text")->as_string());
}

TEST_CASE("what cannot be served is refused before anything is loaded") {
  const Path path = Path(FASTSERVE_SOURCE_DIR) / "tests/data/reference/models/qwen3-tiny";
  ServingSystem::Model model;
  model.name = "qwen";
  model.version = "3";
  model.bundle = read_model_directory(path).value();
  const auto error = [](std::vector<ServingSystem::Model> models, uint64_t memory = 0) {
    ServingSystem::Config config;
    config.lanes = 1;
    config.models = std::move(models);
    config.memory_limit = memory;
    const auto system = ServingSystem::start(std::move(config));
    REQUIRE_FALSE(system.ok());
    return system.error();
  };
  CHECK(error({}).code == ErrorCode::kInvalidArgument);
  CHECK(error({model, model}).code == ErrorCode::kInvalidArgument);
  const Error small = error({model}, 100'000);
  CHECK(small.code == ErrorCode::kResourceExhausted);
  CHECK(small.what.find("97.7 KiB") != std::string::npos);
  CHECK(small.what.find("the weights alone are too large") != std::string::npos);
  // Named in what it says, a context that fits is one.
  ServingSystem::Model other = model;
  other.name = "second";
  const auto tokens_that_fit = [&](uint64_t memory) {
    const std::string what = error({model, other}, memory).what;
    const auto at = what.find("a context of ");
    return at == std::string::npos ? 0 : std::stoi(what.substr(at + 13));
  };
  uint64_t memory = 1 << 20;
  while (tokens_that_fit(memory) == 0) memory += 1 << 16;
  CHECK(error({model, other}, memory).what.find(", of each model") != std::string::npos);
  const int tokens = tokens_that_fit(memory);
  for (ServingSystem::Model* m : {&model, &other}) m->options.kv_blocks = tokens / 16;
  ServingSystem::Config fits;
  fits.lanes = 1;
  fits.models = {model, other};
  fits.memory_limit = memory;
  CHECK(ServingSystem::start(std::move(fits)).ok());
  ServingSystem::Model mute = model;
  mute.bundle.documents.erase("tokenizer.json");
  CHECK(error({mute}).code == ErrorCode::kNotFound);
}
