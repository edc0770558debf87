// A service without a model: an engine thread that answers by script.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "serve/service.h"

namespace fastserve::testing {

/// Each engine step gives every running request one token, its own number 0, 1, 2...; the text is
/// that number and a space. What the prompt says decides how a request ends:
///   "count"     after max_tokens, kLength
///   "endless"   when cancelled
///   "deadline"  kDeadline after three tokens
///   "fail"      kError after one token
///   "refuse"    submit() returns kNotFound
class ScriptedService final : public GenerateService {
 public:
  ScriptedService() : engine_([this] { run(); }) {}
  ~ScriptedService() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      changed_.notify_all();
    }
    engine_.join();
  }

  Result<RequestId> submit(GenerateRequest request, Sink sink) override {
    if (request.prompt == "refuse")
      return Error{ErrorCode::kNotFound, "is not deployed", request.model, "deploy it first"};
    const std::lock_guard lock(mutex_);
    const RequestId id{++submitted_};
    last_request = request;
    running_.emplace(id, Running{std::move(request), std::move(sink), 0});
    changed_.notify_all();
    return id;
  }
  void cancel(RequestId id) override {
    const std::lock_guard lock(mutex_);
    if (running_.contains(id)) cancelled_.insert(id);
    changed_.notify_all();
  }
  std::vector<ServedModel> models() const override {
    return {{"tiny", "3", "llama", "int8-g32", 12'000'000'000, 6, 4096, 32000},
            {"away", "1", "llama", "bf16", 1, 0, 4096, 32000, false}};
  }
  ServerHealth health() const override {
    const std::lock_guard lock(mutex_);
    ServerHealth health{true, static_cast<int>(running_.size()), 2, 3, 4, 5, 6, 7.5, "a script"};
    return health;
  }
  Result<std::vector<int32_t>> tokenise(const std::string& model, const std::string& text,
                                        bool add_special_tokens) const override {
    if (model == "absent") return Error{ErrorCode::kNotFound, "is not deployed", model, "look"};
    std::vector<int32_t> tokens;
    if (add_special_tokens) tokens.push_back(-1);
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
    return tokens;
  }
  Result<std::string> detokenise(const std::string& model,
                                 std::span<const int32_t> tokens) const override {
    std::string text;
    for (const int32_t token : tokens) text.push_back(static_cast<char>(token));
    return text;
  }
  Result<ChatPrompt> format_chat(
      const std::string&,
      std::span<const std::pair<std::string, std::string>> messages) const override {
    std::string prompt;
    for (const auto& [role, content] : messages) prompt += role + ":" + content + "\n";
    return ChatPrompt{prompt, {"user:", "\n\n"}};
  }

  // What tests ask and tell.

  /// Blocks until that many requests were cancelled, over all time.
  void wait_for_cancelled(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return cancelled_.size() >= count; });
  }
  void wait_for_submitted(uint64_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return submitted_ >= count; });
  }
  /// Blocks until the engine has nothing left to do.
  void wait_for_idle() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return running_.empty() && !telling_; });
  }
  GenerateRequest last_request;

 private:
  struct Running {
    GenerateRequest request;
    Sink sink;
    int generated = 0;
  };

  GenerateEvent step(RequestId id, Running& running) {
    GenerateEvent event;
    event.request = id;
    const std::string& script = running.request.prompt;
    if (cancelled_.contains(id)) {
      event.finish = FinishReason::kCancelled;
    } else if (script == "deadline" && running.generated == 3) {
      event.finish = FinishReason::kDeadline;
    } else if (script == "fail" && running.generated == 1) {
      event.finish = FinishReason::kError;
      event.error = Error{ErrorCode::kCorrupt, "a block cannot be trusted", "tiny@3", "verify it"};
    } else {
      const int token = running.generated++;
      GeneratedToken& made = event.tokens.emplace_back();
      made.token = token;
      if (running.request.sampling.top_logprobs >= 0) {
        made.logprob = -0.5;
        made.top = {{token, -0.5}, {token + 1, -1.25}};
      }
      event.text = std::to_string(token) + " ";
      if (script == "count" && running.generated == running.request.max_tokens)
        event.finish = FinishReason::kLength;
    }
    event.prompt_tokens = event.finish == FinishReason::kNone ? 0 : 7;
    event.generated_tokens = event.finish == FinishReason::kNone ? 0 : running.generated;
    return event;
  }

  void run() {
    std::unique_lock lock(mutex_);
    while (!stop_) {
      changed_.wait(lock, [&] { return stop_ || !running_.empty(); });
      std::vector<std::pair<Sink, GenerateEvent>> news;
      for (auto at = running_.begin(); at != running_.end();) {
        news.emplace_back(at->second.sink, step(at->first, at->second));
        at = news.back().second.finish == FinishReason::kNone ? std::next(at) : running_.erase(at);
      }
      telling_ = true;
      lock.unlock();
      for (auto& [sink, event] : news) sink({std::move(event)});
      std::this_thread::yield();
      lock.lock();
      telling_ = false;
      changed_.notify_all();
    }
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Running> running_;
  std::set<RequestId> cancelled_;
  uint64_t submitted_ = 0;
  bool telling_ = false;  // sinks are being called
  bool stop_ = false;
  std::thread engine_;
};

}  // namespace fastserve::testing
