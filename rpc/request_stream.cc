#include "rpc/request_stream.h"

#include <iterator>

namespace fastserve {

namespace {

/// Words of a message to which nothing more is merged: far from what a message may hold.
constexpr uint64_t kFull = (256 << 10) / sizeof(capnp::word);

void append(GenerateEvent& to, GenerateEvent event) {
  to.tokens.insert(to.tokens.end(), std::make_move_iterator(event.tokens.begin()),
                   std::make_move_iterator(event.tokens.end()));
  to.text += event.text;
  to.finish = event.finish;
  to.error = std::move(event.error);
  to.prompt_tokens = event.prompt_tokens;
  to.generated_tokens = event.generated_tokens;
}

}  // namespace

void RequestStream::add(GenerateEvent event) {
  finished_ = finished_ || event.finish != FinishReason::kNone;
  const uint64_t words = event_words(event);
  if (waiting_.empty() || waiting_.back().words + words > kFull) {
    waiting_.push_back({std::move(event), words});
    return;
  }
  append(waiting_.back().event, std::move(event));
  waiting_.back().words += words;
}

void RequestStream::send() {
  while (!waiting_.empty() && unanswered_ < kCredit && on_end_) {
    const Merged next = std::move(waiting_.front());
    waiting_.pop_front();
    auto call = sink_.pushRequest(capnp::MessageSize{next.words + 32, 1});
    write_event(call.initEvent(), next.event);
    unanswered_++;
    calls_.add(call.send().then([this](auto&&) {
      unanswered_--;
      send();
      if (finished_ && waiting_.empty() && unanswered_ == 0) end();
    }));
  }
}

void RequestStream::taskFailed(kj::Exception&&) { end(); }

void RequestStream::end() {
  if (const auto on_end = std::exchange(on_end_, nullptr)) on_end();
}

}  // namespace fastserve
