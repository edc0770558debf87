// What a client hears of a request, for tests that wait for its end.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "serve/service.h"

namespace fastserve {

struct Answer {
  std::vector<int32_t> tokens;
  FinishReason finish = FinishReason::kNone;
  std::optional<Error> error;
  int ends = 0;
};

class Listener {
 public:
  GenerateService::Sink sink() {
    return [this](std::vector<GenerateEvent> events) {
      const std::lock_guard lock(mutex_);
      for (const GenerateEvent& e : events) {
        for (const GeneratedToken& t : e.tokens) answer_.tokens.push_back(t.token);
        if (e.finish == FinishReason::kNone) continue;
        answer_.finish = e.finish;
        answer_.error = e.error;
        ++answer_.ends;
      }
      changed_.notify_all();
    };
  }
  Answer wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return answer_.ends > 0; });
    return answer_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  Answer answer_;
};

}  // namespace fastserve
