#include "rpc/request_stream.h"

#include <iterator>

namespace fastserve {

void RequestStream::add(GenerateEvent event) {
  finished_ = finished_ || event.finish != FinishReason::kNone;
  if (!waiting_) {
    waiting_ = std::move(event);
    return;
  }
  waiting_->tokens.insert(waiting_->tokens.end(), std::make_move_iterator(event.tokens.begin()),
                          std::make_move_iterator(event.tokens.end()));
  waiting_->text += event.text;
  waiting_->finish = event.finish;
  waiting_->error = std::move(event.error);
  waiting_->prompt_tokens = event.prompt_tokens;
  waiting_->generated_tokens = event.generated_tokens;
}

void RequestStream::send() {
  if (!waiting_ || unanswered_ >= kCredit || !on_end_) return;
  auto call = sink_.pushRequest(capnp::MessageSize{event_words(*waiting_) + 32, 1});
  write_event(call.initEvent(), *waiting_);
  waiting_.reset();
  unanswered_++;
  calls_.add(call.send().then([this](auto&&) {
    unanswered_--;
    send();
    if (finished_ && !waiting_ && unanswered_ == 0) end();
  }));
}

void RequestStream::taskFailed(kj::Exception&&) { end(); }

void RequestStream::end() {
  if (const auto on_end = std::exchange(on_end_, nullptr)) on_end();
}

}  // namespace fastserve
