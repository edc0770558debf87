#include "train/step_window.h"

#include <algorithm>

#include "base/check.h"

namespace fastserve {

void StepWindow::begin(StepId first, StepId end) {
  FS_CHECK(steps_.empty());
  first_ = first;
  end_ = end;
}

StepWindow::Step* StepWindow::find(StepId step) {
  return step < first_ || step >= next() ? nullptr : &steps_[step.value - first_.value];
}

void StepWindow::lose(TrainerId trainer) {
  idle_.erase(trainer);
  for (Step& step : steps_)
    for (Piece& piece : step.pieces) {
      if (piece.run.by != trainer || finished(piece)) continue;
      // What it has sent to some shards counts there; the rest comes from somebody else.
      piece.state = Piece::kOpen;
      piece.anybody = true;
    }
}

void StepWindow::cut(StepRanges& ranges, Nanoseconds now) {
  Step& step = steps_.emplace_back();
  std::vector<TrainerId> owners;
  const auto runs = ranges.runs(layout_, now, owners);
  for (size_t i = 0; i < runs.size(); i++) step.pieces.emplace_back(Run{runs[i], owners[i]});
  step.losses.resize(layout_.microbatches());
}

std::optional<StepWindow::Given> StepWindow::take(TrainerId trainer, Nanoseconds now) {
  for (size_t s = 0; s < steps_.size(); s++) {
    auto& pieces = steps_[s].pieces;
    for (uint32_t i = 0; i < pieces.size(); i++) {
      Piece& piece = pieces[i];
      if (piece.state != Piece::kOpen || !(piece.anybody || piece.run.by == trainer)) continue;
      piece.state = Piece::kOut;
      piece.run.by = trainer;
      piece.since = now;
      return Given{trainer, {first_.value + s}, i, piece.run.microbatches};
    }
  }
  return std::nullopt;
}

std::vector<StepWindow::Given> StepWindow::hand_out(StepRanges& ranges, Nanoseconds now) {
  std::vector<Given> out;
  for (auto trainer = idle_.begin(); trainer != idle_.end();) {
    auto given = take(*trainer, now);
    if (!given && next() < end_ && steps_.size() <= ahead_) {
      cut(ranges, now);
      given = take(*trainer, now);  // none: it has no run in this step
    }
    if (given) out.push_back(*given);
    trainer = given ? idle_.erase(trainer) : std::next(trainer);
  }
  return out;
}

bool StepWindow::complete(TrainerId trainer, StepId at, uint32_t run,
                          std::span<const double> losses, StepRanges& ranges, Nanoseconds now) {
  Step* step = find(at);
  if (step == nullptr) {
    idle_.insert(trainer);  // late, and somebody else's by now
    return at < first_;
  }
  if (run >= step->pieces.size()) return false;
  Piece& piece = step->pieces[run];
  if (losses.size() != piece.run.microbatches.count) return false;
  idle_.insert(trainer);
  if (piece.state == Piece::kDone) {
    step->repeated++;
    return true;
  }
  if (piece.run.by == trainer) {
    ranges.measured(trainer, piece.run.microbatches.count, now - piece.since);
    pace_.add(now - piece.since);
  }
  piece.state = Piece::kDone;
  piece.run.by = trainer;
  std::ranges::copy(losses, step->losses.begin() + piece.run.microbatches.first);
  return true;
}

void StepWindow::arrived(ShardId shard, StepId at, uint32_t first) {
  Step* step = find(at);
  if (step == nullptr) return;
  for (Piece& piece : step->pieces)
    if (piece.run.microbatches.first == first) piece.at.insert(shard);
}

void StepWindow::reopen_overdue(Nanoseconds now, Nanoseconds limit) {
  if (idle_.empty()) return;
  for (Step& step : steps_)
    for (Piece& piece : step.pieces) {
      if (piece.state != Piece::kOut || piece.reopened || now - piece.since < limit) continue;
      piece.state = Piece::kOpen;  // the straggler keeps its copy; the first that comes counts
      piece.anybody = piece.reopened = true;
    }
}

std::optional<StepWindow::Whole> StepWindow::take_whole() {
  if (steps_.empty()) return std::nullopt;
  Step& step = steps_.front();
  for (const Piece& piece : step.pieces)
    if (!finished(piece)) return std::nullopt;
  Whole whole{first_, {}, std::move(step.losses), step.repeated};
  for (const Piece& piece : step.pieces) whole.runs.push_back(piece.run);
  steps_.pop_front();
  first_.value++;
  return whole;
}

}  // namespace fastserve
