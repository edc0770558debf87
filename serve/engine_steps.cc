// An engine's steps: what the device is given, and what becomes of its answers.
#include <algorithm>

#include "serve/engine_live.h"

namespace fastserve {

void Engine::run(std::span<const Scheduler::Turn> turns) {
  Batch batch;
  tokens_.clear();
  segments_.clear();
  wanted_.clear();
  for (const Scheduler::Turn& turn : turns) {
    Live& live = static_cast<Live&>(*turn.sequence);
    const int first = static_cast<int>(tokens_.size());
    const auto begin = live.tokens.begin() + live.computed;
    tokens_.insert(tokens_.end(), begin, begin + turn.rows);
    segments_.push_back({first, turn.rows, live.computed, live.blocks});
    batch.all.push_back(&live);
    if (turn.rows < live.pending()) continue;
    wanted_.push_back(first + turn.rows - 1);
    live.row = static_cast<int>(batch.answering.size());
    batch.answering.push_back(&live);
  }
  const std::vector<BlockMove> moves = scheduler_.take_moves();
  if (!moves.empty()) {
    // Whose blocks came through is not known then: nobody's are trusted.
    if (const Status moved = decoder_->move_blocks(moves); !moved.ok())
      return abandon_all(moved.error());
  }
  batch.took_weights = loading();
  if (!decoder_->draws()) return finish(batch, sample_answers(batch));
  if (const Status begun = begin_drawing(batch, 0); !begun.ok()) return finish(batch, begun);
  at_work_.push_back(std::move(batch));
  if (at_work_.front().took_weights) collect();  // who waits for wrong weights is told at once
}

/// The device gets the step behind the one that it is at work on, whose tokens only it knows.
void Engine::run_ahead() {
  if (!decoder_->draws_ahead() || !at_work_.front().sampled_here.empty()) return;
  const auto goes_on = [&](const Sequence& sequence) {
    const Live& live = static_cast<const Live&>(sequence);
    return live.generated() + 1 < live.request.max_tokens &&
           static_cast<int>(live.tokens.size()) < context_length_;
  };
  const auto turns = scheduler_.plan_ahead(goes_on);
  if (turns.empty()) return;
  Batch batch;
  tokens_.clear();
  segments_.clear();
  wanted_.clear();
  for (const Scheduler::Turn& turn : turns) {
    Live& live = static_cast<Live&>(*turn.sequence);
    const int row = static_cast<int>(tokens_.size());
    tokens_.push_back(~live.row);
    segments_.push_back({row, 1, static_cast<int>(live.tokens.size()), live.blocks});
    wanted_.push_back(row);
    live.row = row;
    batch.all.push_back(&live);
  }
  batch.answering = batch.all;
  if (const Status begun = begin_drawing(batch, 1); !begun.ok())
    return abandon(batch, begun.error());
  at_work_.push_back(std::move(batch));
}

/// What the device has been at work on for longest.
void Engine::collect() {
  if (at_work_.empty()) return;
  const Status taken = take_drawn(at_work_.front());
  const Batch batch = std::move(at_work_.front());
  at_work_.pop_front();
  if (!taken.ok()) at_work_.clear();
  finish(batch, taken);
}

void Engine::finish(const Batch& batch, const Status& stepped) {
  if (!stepped.ok())
    return batch.took_weights ? take_weights(stepped) : abandon(batch, stepped.error());
  scheduler_.advance();
  for (size_t i = 0; i < batch.answering.size(); ++i)
    if (batch.answering[i] != nullptr) take_token(*batch.answering[i], std::move(sampled_[i]));
}

Status Engine::sample_answers(const Batch& batch) {
  FS_ASSIGN(const std::span<const float> logits, decoder_->step(tokens_, segments_, wanted_));
  const size_t vocab = static_cast<size_t>(config_.vocab_size);
  sampled_.clear();
  for (size_t i = 0; i < batch.answering.size(); ++i)
    sampled_.push_back(sample(*batch.answering[i], logits.subspan(i * vocab, vocab)));
  return {};
}

/// Only tokens will come from the device, and the logits of those that want more of them than that.
/// `ahead`: tokens of each request that are on their way already.
Status Engine::begin_drawing(Batch& batch, int ahead) {
  draws_.clear();
  for (size_t i = 0; i < batch.answering.size(); ++i) {
    const Live& live = *batch.answering[i];
    const auto draw = draw_on_device(live.request.sampling, live.generated() + ahead);
    if (!draw) batch.sampled_here.push_back(i);
    draws_.push_back(draw.value_or(TokenDraw{}));
  }
  return decoder_->begin_drawing(tokens_, segments_, wanted_, draws_);
}

Status Engine::take_drawn(const Batch& batch) {
  FS_ASSIGN(const std::span<const int32_t> tokens, decoder_->drawn());
  sampled_.clear();
  for (const int32_t token : tokens) {
    if (token < 0)
      sampled_.push_back(logits_not_finite());
    else
      sampled_.push_back(GeneratedToken{token, 0, {}});
  }
  for (const size_t i : batch.sampled_here) {
    if (batch.answering[i] == nullptr) continue;
    FS_ASSIGN(const std::span<const float> logits, decoder_->logits_of(i));
    sampled_[i] = sample(*batch.answering[i], logits);
  }
  return {};
}

Result<GeneratedToken> Engine::sample(const Live& live, std::span<const float> logits) {
  return sampler_.sample(logits, live.request.sampling, live.tokens, live.generated());
}

/// A device that has failed answers none of the requests it was at work on.
void Engine::abandon(const Batch& batch, const Error& error) {
  for (Live* live : batch.all)
    if (live != nullptr) end(*live, FinishReason::kError, error);
}

void Engine::abandon_all(const Error& error) {
  const FinishReason reason =
      error.code == ErrorCode::kCancelled ? FinishReason::kCancelled : FinishReason::kError;
  while (!live_.empty()) end(*live_.begin()->second, reason, error);
}

void Engine::take_token(Live& live, Result<GeneratedToken> sampled) {
  if (!sampled.ok()) return end(live, FinishReason::kError, std::move(sampled).error());
  const int32_t token = sampled->token;
  live.tokens.push_back(token);
  ++tokens_generated_;
  FS_CHECK(!live.unwritten);
  live.unwritten = *std::move(sampled);
  if (!live.request.stop.empty()) write(live);  // whether it goes on depends on what it says
  const FinishReason reason = finish_of(live, token);
  if (reason != FinishReason::kNone) return end(live, reason);
  if (live.unwritten) unwritten_.push_back(&live);
}

/// Makes its last token text.
void Engine::write(Live& live) {
  if (!live.unwritten) return;
  GenerateEvent& event = event_of(live);
  event.text += live.stops.push(live.decoder.push(live.unwritten->token));
  event.tokens.push_back(*std::exchange(live.unwritten, std::nullopt));
}

void Engine::write_all() {
  for (Live* live : unwritten_) write(*live);
  unwritten_.clear();
}

FinishReason Engine::finish_of(const Live& live, int32_t token) const {
  const auto& eos = config_.eos_tokens;
  if (live.stops.matched()) return FinishReason::kStop;
  if (!live.request.ignore_eos && std::find(eos.begin(), eos.end(), token) != eos.end())
    return FinishReason::kEos;
  if (live.generated() >= live.request.max_tokens) return FinishReason::kLength;
  if (static_cast<int>(live.tokens.size()) > context_length_) return FinishReason::kContext;
  return FinishReason::kNone;
}

void Engine::end(Live& live, FinishReason reason, std::optional<Error> error) {
  write(live);
  std::erase(unwritten_, &live);
  for (Batch& batch : at_work_)
    for (auto* rows : {&batch.all, &batch.answering})
      std::replace(rows->begin(), rows->end(), &live, static_cast<Live*>(nullptr));
  GenerateEvent& event = event_of(live);
  event.text += live.stops.push(live.decoder.finish());
  event.text += live.stops.finish();
  // The held-back text of a natural end may complete a stop string.
  const bool natural = reason == FinishReason::kEos || reason == FinishReason::kLength ||
                       reason == FinishReason::kContext;
  event.finish = natural && live.stops.matched() ? FinishReason::kStop : reason;
  event.error = std::move(error);
  event.prompt_tokens = live.prompt_tokens;
  event.generated_tokens = live.generated();
  ++requests_finished_;
  scheduler_.remove(live);
  const RequestId id = live.id;
  live_.erase(id);
}

}  // namespace fastserve
