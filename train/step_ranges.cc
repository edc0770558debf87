#include "train/step_ranges.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/check.h"

namespace fastserve {
namespace {

/// The whole number near `at` at which the largest subtrees meet, or the nearest one.
uint32_t place_cut(double at, double tolerance, uint32_t least, uint32_t most) {
  const auto nearest = std::clamp(static_cast<uint32_t>(std::lround(at)), least, most);
  uint32_t best = nearest;
  for (uint32_t i = least; i <= most; i++) {
    if (std::abs(i - at) > tolerance) continue;
    const int better = std::countr_zero(i) - std::countr_zero(best);
    if (better > 0 || (better == 0 && std::abs(i - at) < std::abs(best - at))) best = i;
  }
  return best;
}

}  // namespace

void StepRanges::measure() {
  for (auto& [id, trainer] : trainers_) {
    const double took = std::chrono::duration<double>(trainer.last - started_).count();
    if (trainer.done == 0 || took <= 0) continue;
    const double rate = trainer.done / took;
    trainer.rate = trainer.rate == 0 ? rate : trainer.rate + (rate - trainer.rate) / 8;
  }
}

void StepRanges::place_cuts(uint32_t n, Nanoseconds now, double play) {
  FS_CHECK(!trainers_.empty());
  measure();
  started_ = now;
  double known = 0, total = 0;
  int measured = 0;
  for (const auto& [id, trainer] : trainers_)
    if (trainer.rate > 0) known += trainer.rate, measured++;
  const double usual = measured > 0 ? known / measured : 1;  // of one that is not measured yet
  for (const auto& [id, trainer] : trainers_) total += trainer.rate > 0 ? trainer.rate : usual;
  const double tolerance = play * n / static_cast<double>(trainers_.size());
  uint32_t first = 0;
  double reached = 0;
  size_t left = trainers_.size();
  for (auto& [id, trainer] : trainers_) {
    reached += (trainer.rate > 0 ? trainer.rate : usual) / total * n;
    const uint32_t end = --left == 0 ? n : place_cut(reached, tolerance, first, n);
    trainer.given = end - first;
    trainer.done = 0;
    trainer.share = static_cast<double>(trainer.given) / n;
    first = end;
  }
}

std::vector<Subtree> StepRanges::cut(const StepLayout& layout, Nanoseconds now,
                                     std::vector<TrainerId>& owners) {
  place_cuts(layout.microbatches(), now, 0.1);
  std::vector<Subtree> units;
  owners.clear();
  uint32_t first = 0;
  for (const auto& [id, trainer] : trainers_) {
    for (const Subtree subtree : layout.cover(first, trainer.given)) {
      units.push_back(subtree);
      owners.push_back(id);
    }
    first += trainer.given;
  }
  return units;
}

std::vector<Subtree> StepRanges::runs(const StepLayout& layout, Nanoseconds now,
                                      std::vector<TrainerId>& owners) {
  place_cuts(layout.microbatches(), now, 0);
  std::vector<Subtree> runs;
  owners.clear();
  uint32_t first = 0;
  for (const auto& [id, trainer] : trainers_) {
    if (trainer.given > 0) {
      runs.push_back({first, trainer.given});
      owners.push_back(id);
    }
    first += trainer.given;
  }
  return runs;
}

void StepRanges::completed(TrainerId trainer, uint32_t microbatches, Nanoseconds now) {
  const auto it = trainers_.find(trainer);
  if (it == trainers_.end()) return;
  it->second.done += microbatches;
  it->second.last = now;
}

void StepRanges::measured(TrainerId trainer, uint32_t microbatches, Nanoseconds took) {
  const auto it = trainers_.find(trainer);
  const double seconds = std::chrono::duration<double>(took).count();
  if (it == trainers_.end() || seconds <= 0) return;
  double& rate = it->second.rate;
  rate = rate == 0 ? microbatches / seconds : rate + (microbatches / seconds - rate) / 8;
}

double StepRanges::share(TrainerId trainer) const {
  const auto it = trainers_.find(trainer);
  return it == trainers_.end() ? 0 : it->second.share;
}

double StepRanges::rate(TrainerId trainer) const {
  const auto it = trainers_.find(trainer);
  return it == trainers_.end() ? 0 : it->second.rate;
}

}  // namespace fastserve
