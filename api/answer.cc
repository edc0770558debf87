#include "api/answer.h"

#include <condition_variable>
#include <mutex>

namespace fastserve {
namespace {

/// Events on their way from the engine's thread to the caller's. Outlives the request: the sink
/// keeps it.
struct Mailbox {
  std::mutex mutex;
  std::condition_variable arrived;
  std::vector<GenerateEvent> events;
};

}  // namespace

Result<bool> Answer::absorb(GenerateEvent event) {
  text += event.text;
  for (GeneratedToken& token : event.tokens) tokens.push_back(std::move(token));
  if (event.finish == FinishReason::kNone) return false;
  if (event.error) return std::move(*event.error);
  finish = event.finish;
  prompt_tokens = event.prompt_tokens;
  generated_tokens = event.generated_tokens;
  return true;
}

Result<Answer> generate_and_wait(GenerateService& service, const GenerateRequest& request,
                                 const std::function<bool(const std::string&)>& on_text,
                                 const CancelFlag& cancel) {
  const auto mailbox = std::make_shared<Mailbox>();
  const SystemClock clock;
  const Nanoseconds start = clock.now();
  FS_ASSIGN(const RequestId id,
            service.submit(request, [mailbox](std::vector<GenerateEvent> events) {
              const std::lock_guard lock(mailbox->mutex);
              for (GenerateEvent& event : events) mailbox->events.push_back(std::move(event));
              mailbox->arrived.notify_one();
            }));
  Answer answer;
  bool cancelled = false;
  for (;;) {
    std::vector<GenerateEvent> events;
    {
      std::unique_lock lock(mailbox->mutex);
      // Bounded, because a signal handler can only set the flag.
      mailbox->arrived.wait_for(lock, std::chrono::milliseconds(50),
                                [&] { return !mailbox->events.empty(); });
      events.swap(mailbox->events);
    }
    bool wanted = !cancel.raised();
    for (GenerateEvent& event : events) {
      if (!event.text.empty() && !cancelled && on_text) wanted = on_text(event.text) && wanted;
      FS_ASSIGN(const bool last, answer.absorb(std::move(event)));
      if (!last) continue;
      answer.seconds = std::chrono::duration<double>(clock.now() - start).count();
      return answer;
    }
    if (!wanted && !cancelled) {
      service.cancel(id);
      cancelled = true;
    }
  }
}

}  // namespace fastserve
