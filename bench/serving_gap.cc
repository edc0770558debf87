// How long a device stands still between two steps of a server, which hands it the next tokens'
// work while clients are sent the last ones. The server, its engine and its port are the real ones;
// the device is a stand-in that takes a set time for each step, and the clients are another
// process.
//   serving_gap [requests] [microseconds of a step]
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <thread>

#include "actors/serving_system.h"
#include "base/json.h"
#include "rpc/client.h"
#include "rpc/server.h"

using namespace fastserve;
using Time = std::chrono::steady_clock::time_point;

namespace {

constexpr int kVocab = 32000, kPrompt = 128, kTokens = 400, kBlockTokens = 16;
constexpr int kRequestsEach = 32;                   // of a client's connection
constexpr std::chrono::microseconds kWatched(300);  // a driver does not sleep to a step's end

Time now() { return std::chrono::steady_clock::now(); }

/// Draws tokens like a GPU that is busy for as long as it is told.
class StandIn final : public Decoder {
 public:
  StandIn(int requests, std::chrono::microseconds step, std::vector<double>& gaps)
      : requests_(static_cast<size_t>(requests)), step_(step), gaps_(gaps) {
    config_.vocab_size = kVocab;
    config_.max_positions = kPrompt + kTokens;
    options_.block_tokens = kBlockTokens;
    options_.kv_blocks = requests * ((kPrompt + kTokens) / kBlockTokens + 1);
    options_.max_rows = 2 * requests;
    options_.max_logits = requests;
  }
  const ModelConfig& config() const override { return config_; }
  const DecoderOptions& options() const override { return options_; }
  size_t weight_bytes() const override { return 0; }
  size_t kv_bytes() const override { return 0; }
  Result<std::span<const float>> step(std::span<const int32_t>, std::span<const Segment>,
                                      std::span<const int32_t>) override {
    return Error{ErrorCode::kUnsupported, "gives no logits", "the stand-in", ""};
  }
  Result<std::vector<double>> score(std::span<const int32_t>, std::span<const int32_t>) override {
    return std::vector<double>();
  }
  bool draws() const override { return true; }
  bool draws_ahead() const override { return true; }
  Status begin_drawing(std::span<const int32_t> tokens, std::span<const Segment>,
                       std::span<const int32_t> wanted, std::span<const TokenDraw>) override {
    const Time begins = std::max(now(), ends_);
    const bool whole = wanted.size() == requests_ && tokens.size() == requests_;
    if (whole && last_whole_)
      gaps_.push_back(std::chrono::duration<double, std::micro>(begins - ends_).count());
    last_whole_ = whole;
    ends_ = begins + step_;
    std::vector<int32_t> drawn;
    for (const int32_t row : wanted) {
      int32_t token = tokens[static_cast<size_t>(row)];
      if (token < 0) token = at_work_.back().tokens[static_cast<size_t>(~token)];
      drawn.push_back((token * 7 + 13) % kVocab);
    }
    at_work_.push_back({std::move(drawn), ends_});
    return {};
  }
  Result<std::span<const int32_t>> drawn() override {
    const Drawing first = std::move(at_work_.front());
    at_work_.pop_front();
    std::this_thread::sleep_until(first.ends - kWatched);
    while (now() < first.ends) continue;
    drawn_ = first.tokens;
    return std::span<const int32_t>(drawn_);
  }

 private:
  struct Drawing {
    std::vector<int32_t> tokens;
    Time ends;
  };
  ModelConfig config_;
  DecoderOptions options_;
  const size_t requests_;
  const std::chrono::microseconds step_;
  std::vector<double>& gaps_;
  std::deque<Drawing> at_work_;
  std::vector<int32_t> drawn_;
  Time ends_;
  bool last_whole_ = false;  // with a token of every request
};

Result<std::shared_ptr<const Tokenizer>> tokenizer() {
  BpeTrainerOptions options;
  options.vocab_size = 0;
  options.special_tokens = {};
  FS_ASSIGN(const std::string bytes, train_bpe({}, options));
  FS_ASSIGN(Json json, Json::parse(bytes, "words"));
  Json model = *json.find("model"), words = *model.find("vocab");
  for (int id = 256; id < kVocab; ++id) words.set("word" + std::to_string(id), int64_t{id});
  model.set("vocab", std::move(words));
  json.set("model", std::move(model));
  return Tokenizer::from_json(json.dump(), "words");
}

/// All requests at once, each to its last token. Returns how many failed.
int ask(int port, int requests) {
  std::vector<std::unique_ptr<RpcClient>> clients;
  for (int i = 0; i < requests; i += kRequestsEach)
    clients.push_back(RpcClient::connect("127.0.0.1", port).value());
  std::atomic<int> failed = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < requests; ++i)
    threads.emplace_back([&, i] {
      GenerateRequest request;
      for (int t = 0; t < kPrompt; ++t)
        request.prompt_tokens.push_back((i * 977 + t * 31) % kVocab);
      request.max_tokens = kTokens;
      request.sampling.temperature = 0;
      request.ignore_eos = true;
      const size_t client = static_cast<size_t>(i / kRequestsEach);
      if (!clients[client]->generate(request, [](const GenerateEvent&) {}).ok()) ++failed;
    });
  for (std::thread& thread : threads) thread.join();
  return failed;
}

Status measure(int requests, std::chrono::microseconds step, int port_out) {
  std::vector<double> gaps;
  FS_ASSIGN(auto words, tokenizer());
  ServingSystem::LoadedModel model;
  model.info.name = "stand-in";
  model.info.context_length = kPrompt + kTokens;
  model.info.vocab_size = kVocab;
  const SchedulerLimits limits{
      .step_rows = 2 * requests, .max_running = requests, .max_waiting = requests};
  model.engine = std::make_unique<Engine>(std::make_unique<StandIn>(requests, step, gaps),
                                          std::move(words), limits);
  std::vector<ServingSystem::LoadedModel> models;
  models.push_back(std::move(model));
  ServingSystem::Config config;
  config.limits = limits;
  FS_ASSIGN(const auto system,
            ServingSystem::serve(std::move(config), std::move(models), nullptr, "a stand-in"));
  FS_ASSIGN(const auto server, RpcServer::start({}, system));
  const int port = server->port();
  if (::write(port_out, &port, sizeof port) != sizeof port) std::abort();
  int status = 0;
  ::wait(&status);
  system->stop(ServingSystem::Stop::kCancel);
  if (status != 0 || gaps.empty())
    return Error{ErrorCode::kInternal, "requests failed, or never ran all at once", "", ""};
  std::sort(gaps.begin(), gaps.end());
  const auto at = [&](double q) { return gaps[static_cast<size_t>(q * double(gaps.size() - 1))]; };
  fmt::print(
      "{} requests, {} steps of {} us: {:.0f} us between two ({:.0f} to {:.0f} in 8 of 10), "
      "{:.1f} % of the time\n",
      requests, gaps.size(), step.count(), at(0.5), at(0.1), at(0.9),
      100 * at(0.5) / (at(0.5) + static_cast<double>(step.count())));
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  const int requests = argc > 1 ? std::atoi(argv[1]) : 256;
  const std::chrono::microseconds step(argc > 2 ? std::atoi(argv[2]) : 5000);
  int ends[2];
  if (requests < 1 || requests > 256 || step.count() < 1 || ::pipe(ends) != 0) {
    fmt::print(stderr, "serving_gap [requests, 1 to 256] [microseconds of a step]\n");
    return 2;
  }
  if (::fork() == 0) {  // before there are threads
    int port = 0;
    ::close(ends[1]);
    if (::read(ends[0], &port, sizeof port) != sizeof port) ::_exit(1);
    ::_exit(ask(port, requests) == 0 ? 0 : 1);
  }
  const Status status = measure(requests, step, ends[1]);
  if (!status.ok()) fmt::print(stderr, "error: {}\n", status.error().message());
  return status.ok() ? 0 : 1;
}
