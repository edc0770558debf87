#include "actors/coordinator.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

namespace fastserve {

using namespace messages;

namespace {

constexpr auto kTick = std::chrono::milliseconds(500);
constexpr Nanoseconds kSlowDisk = std::chrono::seconds(5);  // for one checkpoint

/// Carries out the job's orders.
class Shell {
 public:
  Shell(CoordinatorActor::pointer self, std::shared_ptr<CoordinatorParts> parts)
      : self_(self), parts_(std::move(parts)) {}

  TrainingJob& job() { return *parts_->job; }

  void begin() {
    for (const auto& trainer : parts_->trainers) self_->monitor(trainer);
    for (const auto& shard : parts_->shards) self_->monitor(shard);
    if (parts_->in_pieces == 0) last_ = parts_->first_weights;
    has_best_ = parts_->best != nullptr;
    std::vector<TrainerId> all;
    for (uint32_t i = 0; i < parts_->trainers.size(); i++) all.push_back({i});
    carry_out(job().trainers_joined(all));
  }

  void joined(const TrainerActor& trainer) {
    self_->monitor(trainer);
    parts_->trainers.push_back(trainer);
    carry_out(job().trainer_joined({static_cast<uint32_t>(parts_->trainers.size() - 1)}));
  }

  void carry_out(Actions actions) {
    for (Action& action : actions) std::visit([this](auto& order) { carry_out(order); }, action);
  }

  void down(const caf::down_msg& message) {
    const auto& trainers = parts_->trainers;
    for (uint32_t i = 0; i < trainers.size(); i++)
      if (trainers[i].address() == message.source)
        return carry_out(job().trainer_lost({i}, {ErrorCode::kUnavailable, "has stopped", "", ""}));
    for (const auto& shard : parts_->shards)
      if (shard.address() == message.source)
        return carry_out(
            job().shard_failed({ErrorCode::kInternal, "a parameter server has stopped", "",
                                "start the job again: it goes on from the last checkpoint"}));
  }

  void copied(std::shared_ptr<const ShardState> part) {
    copies_.push_back(std::move(part));
    if (copies_.size() < parts_->shards.size()) return;
    if (ended_) return finish_with_copies();
    if (parts_->look_at_memory) parts_->look_at_memory();
    if (parts_->in_pieces != 0) copies_.clear();  // they say when, and hold nothing
    if (!parts_->weights && parts_->in_pieces == 0) last_ = joined_weights(copies_);
    self_->send(parts_->writer, WriteCheckpoint{copied_state_, std::move(copies_), parts_->best,
                                                parts_->in_pieces, has_best_});
    writing_since_ = clock_.now();
    copies_.clear();
    carry_out(job().snapshot_taken());
  }

  void hold(const Hold& hold) {
    if (hold.on)
      job().hold_still();
    else
      carry_out(job().go_on());
  }

  void written(const Status& status) {
    if (said_slow_)
      parts_->log.warning(
          fmt::format("the disk is done with the checkpoint of step {} after {:.0f} s",
                      copied_state_.steps_done, seconds_of_writing()));
    writing_since_.reset();
    said_slow_ = false;
    carry_out(job().checkpoint_written(status));
  }

  void tick() {
    const bool here = parts_->in_pieces == 0;  // else the collector says whose disk it is
    if (writing_since_ && here && !said_slow_ && clock_.now() - *writing_since_ > kSlowDisk) {
      said_slow_ = true;
      parts_->log.warning(fmt::format(
          "the checkpoint of step {} is not on the disk after {:.0f} s: the disk is slow or stuck; "
          "the job goes on, and waits for it when the next checkpoint is due",
          copied_state_.steps_done, seconds_of_writing()));
    }
    carry_out(job().tick());
  }

  void best_copied(std::shared_ptr<const ShardState> part) {
    best_copies_.push_back(std::move(part));
    if (best_copies_.size() < parts_->shards.size()) return;
    parts_->best = joined_weights(best_copies_);
    best_copies_.clear();
    if (ended_) finish_with_copies();
  }

 private:
  using Copies = std::vector<std::shared_ptr<const ShardState>>;

  static std::shared_ptr<const std::vector<float>> joined_weights(const Copies& copies) {
    size_t elements = 0;
    for (const auto& part : copies) elements += part->weights.size();
    auto all = std::make_shared<std::vector<float>>(elements);
    for (const auto& part : copies)
      std::copy(part->weights.begin(), part->weights.end(),
                all->begin() + static_cast<ptrdiff_t>(part->offset));
    return all;
  }

  void carry_out(GiveWork& order) {
    self_->send(parts_->trainers[order.trainer.value], Work{std::move(order.item)});
  }
  void carry_out(const Commit& commit) {
    if (parts_->committed) parts_->committed(commit);
  }
  void carry_out(const ApplyStep& order) {
    for (const auto& shard : parts_->shards) self_->send(shard, Apply{order.order});
  }
  void carry_out(const CloseRound& order) {
    for (const auto& shard : parts_->shards) self_->send(shard, Close{order.order});
  }
  void carry_out(const SkipStep& order) {
    for (const auto& shard : parts_->shards) self_->send(shard, Skip{order.step});
  }
  void carry_out(const HoldStill&) { parts_->held_still(); }
  void carry_out(const KeepBest&) {
    if (parts_->weights) {
      auto weights = parts_->weights();
      if (!weights.ok()) return carry_out(job().shard_failed(weights.error()));
      parts_->best = std::make_shared<const std::vector<float>>(std::move(*weights));
      return;
    }
    // Every shard copies before it hears of the next step, and before it copies for a checkpoint.
    has_best_ = true;
    ask_for_weights(CopyWeights::Of::kBest, best_copies_);
  }
  void carry_out(const TakeSnapshot& order) {
    copied_state_ = order.state;
    copies_.clear();
    for (const auto& shard : parts_->shards) self_->send(shard, CopyState{order.state.steps_done});
  }
  void carry_out(const Report& order) {
    if (parts_->progress) parts_->progress(order.progress);
  }
  void carry_out(const Warn& order) { parts_->log.warning(order.line); }
  void carry_out(Finish& order) {
    if (!order.end.ok()) {
      parts_->completion->set(std::move(order.end).error());
      return;
    }
    if (parts_->in_pieces == 0 || *order.end == TrainEnd::kCancelled) return finish(*order.end);
    ended_ = *order.end;
    parts_->best = nullptr;
    ask_for_weights(CopyWeights::Of::kFinal, copies_);
    if (has_best_) ask_for_weights(CopyWeights::Of::kFinalBest, best_copies_);
  }

  void ask_for_weights(CopyWeights::Of of, Copies& answers) {
    answers.clear();
    for (const auto& shard : parts_->shards)
      self_->send(shard, CopyWeights{of, job().state().steps_done});
  }

  /// What the job ends in has come from other nodes, or some of it.
  void finish_with_copies() {
    const size_t shards = parts_->shards.size();
    if (copies_.size() < shards || (has_best_ && parts_->best == nullptr)) return;
    last_ = joined_weights(copies_);
    finish(*std::exchange(ended_, {}));
  }

  void finish(TrainEnd end) {
    TrainOutcome outcome = job().outcome();
    outcome.end = end;
    if (parts_->look_at_memory) parts_->look_at_memory();
    if (parts_->complete_outcome) parts_->complete_outcome(outcome);
    if (parts_->weights) {
      auto weights = parts_->weights();
      if (!weights.ok()) return parts_->completion->set(weights.error());
      outcome.weights = std::move(*weights);
    } else if (last_ != nullptr) {
      outcome.weights = *last_;  // a job ends with a checkpoint
    }
    if (parts_->best != nullptr) outcome.best_weights = *parts_->best;
    parts_->completion->set(std::move(outcome));
  }

  double seconds_of_writing() const {
    return std::chrono::duration<double>(clock_.now() - *writing_since_).count();
  }

  CoordinatorActor::pointer self_;
  std::shared_ptr<CoordinatorParts> parts_;
  const SystemClock clock_;
  JobState copied_state_;
  std::optional<Nanoseconds> writing_since_;  // the last checkpoint, until the disk has it
  bool said_slow_ = false, has_best_ = false;
  std::optional<TrainEnd> ended_;  // what it ended in is on its way here
  Copies copies_, best_copies_;
  std::shared_ptr<const std::vector<float>> last_;  // of the last checkpoint, if on other nodes
};

}  // namespace

void Completion::set(Result<TrainOutcome> outcome) {
  std::lock_guard lock(mutex_);
  if (!outcome_) outcome_ = std::move(outcome);
  changed_.notify_all();
}

Result<TrainOutcome> Completion::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return outcome_.has_value(); });
  return std::move(*outcome_);
}

bool Completion::wait_for(Nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [this] { return outcome_.has_value(); });
}

CoordinatorActor::behavior_type coordinator(CoordinatorActor::pointer self,
                                            std::shared_ptr<CoordinatorParts> parts) {
  // Whatever ends this actor, whoever waits for the outcome must hear of it.
  self->attach_functor([completion = parts->completion](const caf::error&) {
    completion->set(Error{ErrorCode::kCancelled, "the training system was shut down", "", ""});
  });
  auto shell = std::make_shared<Shell>(self, std::move(parts));
  self->set_down_handler([shell](const caf::down_msg& message) { shell->down(message); });
  return {
      [=](const Begin&) {
        shell->begin();
        self->delayed_send(self, kTick, Tick{});
      },
      [=](const WorkDone& done) {
        shell->carry_out(shell->job().work_done(done.trainer, done.round, done.unit, done.losses));
      },
      [=](const WorkDropped&) { shell->carry_out(shell->job().tick()); },
      [=](const TrainerFailed& failed) {
        shell->carry_out(shell->job().trainer_lost(failed.trainer, failed.error));
      },
      [=](Gathered& gathered) {
        shell->carry_out(shell->job().shard_gathered(gathered.shard, gathered.step,
                                                     std::move(gathered.squares)));
      },
      [=](const Displaced& displaced) {
        shell->carry_out(
            shell->job().displaced(displaced.shard, displaced.step, displaced.attempt));
      },
      [=](const ShardReady& ready) {
        shell->carry_out(shell->job().shard_ready(ready.shard, ready.step));
      },
      [=](const ShardFailed& failed) { shell->carry_out(shell->job().shard_failed(failed.error)); },
      [=](StateCopied& copied) { shell->copied(std::move(copied.part)); },
      [=](WeightsCopied& copied) { shell->best_copied(std::move(copied.part)); },
      [=](const TrainerJoined& joined) { shell->joined(joined.trainer); },
      [=](const CheckpointWritten& written) { shell->written(*written.status); },
      [=](const Hold& hold) { shell->hold(hold); },
      [=](const Tick&) {
        shell->tick();
        self->delayed_send(self, kTick, Tick{});
      },
  };
}

CheckpointWriterActor::behavior_type checkpoint_writer(
    CheckpointWriterActor::pointer self, std::shared_ptr<CheckpointDirectory> directory,
    CheckpointHeader header, std::shared_ptr<LedgerFile> ledger) {
  return {
      [=](const WriteCheckpoint& order) mutable {
        header.state = order.state;
        // What the disk refuses here it will refuse of the checkpoint, whose failure is heard of.
        const Status synced = ledger != nullptr ? ledger->sync() : Status();
        auto written = directory->write(header, order.parts, order.best.get());
        auto status = std::make_shared<const Status>(std::move(written));
        self->send(caf::actor_cast<CoordinatorActor>(self->current_sender()),
                   CheckpointWritten{std::move(status)});
      },
      [](const Settle&) { return true; },
  };
}

}  // namespace fastserve
