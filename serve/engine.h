// One model answering many requests at once.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "model/decoder.h"
#include "model/tokenizer.h"
#include "serve/kv_pages.h"
#include "serve/request.h"
#include "serve/sampler.h"
#include "serve/scheduler.h"

namespace fastserve {

struct EngineHealth {
  int running = 0, queued = 0;
  int kv_blocks_free = 0, kv_blocks = 0;
  int64_t tokens_generated = 0, requests_finished = 0;
  int64_t preemptions = 0, prompt_tokens_shared = 0;
  int64_t tokens_parked = 0;  ///< kept on the host while their requests gave way
};

/// Makes an engine's decoder, and makes it again: each time of one model, with the same options.
using DecoderMaker = std::function<Result<std::unique_ptr<Decoder>>()>;

/// A decoder, a scheduler and a sampler, and the requests between them.
///
/// The decoder's weights may still be coming. Steps take them then, and requests are let in
/// meanwhile: they run beside the load where the decoder does that, and else wait for it. When it
/// fails, they and all later ones end with its error.
///
/// Where the device draws tokens, a step hands over the next ones before it returns what the last
/// ones were, and the device is at work while those are made text and handed out. While nobody
/// comes and no prompt is read, it even has the step behind that: a request that an end token or a
/// stop string ends has then a row in one more step, which nobody looks at.
///
/// With a DecoderMaker it may be without a decoder: requests are let in and wait. It gets one by
/// come(), and gives it up by leave(), with all that the device holds of the model.
///
/// Owns:     all of them. What a request needs is allocated when it comes and freed when it ends.
/// Threads:  one caller; but check(), tokenizer() and context_length() may come from any thread.
/// Promises: each accepted request ends with exactly one event whose `finish` is not kNone. Its
///           tokens and text do not depend on which requests share its steps, on when it was
///           preempted, on what the prefix memory held, or on decoders that came and left.
class Engine {
 public:
  /// `limits` are cut to what the decoder can do in one step.
  Engine(std::unique_ptr<Decoder> decoder, std::shared_ptr<const Tokenizer> tokenizer,
         SchedulerLimits limits);
  /// Without a decoder. `config` and `options` are those of the decoders that `make` makes.
  Engine(ModelConfig config, DecoderOptions options, DecoderMaker make,
         std::shared_ptr<const Tokenizer> tokenizer, SchedulerLimits limits);
  ~Engine();  ///< waits for what is at work

  /// Requires here().
  const Decoder& decoder() const { return *decoder_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  /// Tokens of prompt and answer together: the model's positions, or what the KV pool holds.
  int context_length() const { return context_length_; }

  /// The request with its prompt as tokens, or kInvalidArgument naming what is wrong with it.
  Result<GenerateRequest> check(GenerateRequest request) const;

  /// Queues what check() returned; `id` must be new. kResourceExhausted when the queue is full.
  Status submit(RequestId id, GenerateRequest checked, Nanoseconds now);
  /// The next step's events end the request with kCancelled. Unknown ids are ignored.
  void cancel(RequestId id);
  void cancel_all();

  bool here() const { return decoder_ != nullptr; }
  /// Takes a decoder, whose weights may be still to come. Requires a DecoderMaker and !here().
  /// Errors: its maker's, and it is as before; a DecoderMaker may be asked again.
  Status come();
  /// Ends the decoder's life. Requests that have not begun go on waiting. A load that failed is
  /// forgotten. Requires here() and !answering().
  void leave();
  /// Requests have begun that have not ended.
  bool answering() const { return scheduler_.begun(); }
  /// Requests have not begun.
  bool asked() const { return scheduler_.asked(); }
  /// While closed, no further requests begin.
  void set_closed(bool closed) { scheduler_.set_closed(closed); }
  /// Ends every request with an error, kCancelled as cancelled.
  void abandon_all(const Error& error);

  /// Requests are waiting or running, events wait to be handed out, or the device is at work.
  bool has_work() const { return !live_.empty() || !events_.empty() || !at_work_.empty(); }
  /// The decoder's weights are still to come: steps are needed though there be no request.
  bool loading() const { return here() && !load_failure_ && !decoder_->loaded(); }
  const std::optional<Error>& load_failure() const { return load_failure_; }
  /// One ragged batch, or some of the weights: every event since the last step, at most one for
  /// each request.
  std::vector<GenerateEvent> step(Nanoseconds now);
  /// Waits for what is at work. Before another engine's decoder on the same device steps or comes,
  /// which would be told of what went wrong here.
  void settle();

  EngineHealth health() const;

 private:
  struct Live;
  /// A step from its beginning to its answers. Who ends meanwhile is null in it.
  struct Batch {
    std::vector<Live*> all, answering;
    std::vector<size_t> sampled_here;  ///< of those answering: whom drawing does not do for
    bool took_weights = false;         ///< some were still to come when it began
  };
  Engine(std::unique_ptr<Decoder>&& decoder, ModelConfig config, DecoderOptions options,
         DecoderMaker make, std::shared_ptr<const Tokenizer> tokenizer, SchedulerLimits limits);
  void expire(Nanoseconds now);
  void take_weights(const Status& taken);
  void run(std::span<const Scheduler::Turn> turns);
  void run_ahead();
  void collect();
  void finish(const Batch& batch, const Status& stepped);
  void abandon(const Batch& batch, const Error& error);
  Status sample_answers(const Batch& batch);
  Status begin_drawing(Batch& batch, int ahead);
  Status take_drawn(const Batch& batch);
  Result<GeneratedToken> sample(const Live& live, std::span<const float> logits);
  void take_token(Live& live, Result<GeneratedToken> sampled);
  void write(Live& live);
  void write_all();
  FinishReason finish_of(const Live& live, int32_t token) const;
  void end(Live& live, FinishReason reason, std::optional<Error> error = {});
  GenerateEvent& event_of(Live& live);

  const ModelConfig config_;
  const DecoderOptions options_;
  const DecoderMaker make_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<Decoder> decoder_;
  const int context_length_;
  KvPages pages_;
  Scheduler scheduler_;
  TokenSampler sampler_;
  std::unordered_map<RequestId, std::unique_ptr<Live>> live_;
  std::vector<GenerateEvent> events_;
  std::optional<Error> load_failure_;
  int64_t tokens_generated_ = 0, requests_finished_ = 0;
  std::deque<Batch> at_work_;     // on the device, two at most
  std::vector<Live*> unwritten_;  // they go on, and have a token that is no text yet
  int64_t events_given_ = 0;      // how often
  // The inputs and outcome of one step, kept to be filled again.
  std::vector<int32_t> tokens_, wanted_;
  std::vector<Segment> segments_;
  std::vector<TokenDraw> draws_;
  std::vector<Result<GeneratedToken>> sampled_;  // of those that are answering
};

}  // namespace fastserve
