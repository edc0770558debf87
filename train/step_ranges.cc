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

std::vector<Subtree> StepRanges::cut(const StepLayout& layout, Nanoseconds now,
                                     std::vector<TrainerId>& owners) {
  FS_CHECK(!trainers_.empty());
  measure();
  started_ = now;
  double known = 0, total = 0;
  int measured = 0;
  for (const auto& [id, trainer] : trainers_)
    if (trainer.rate > 0) known += trainer.rate, measured++;
  const double usual = measured > 0 ? known / measured : 1;  // of one that is not measured yet
  for (const auto& [id, trainer] : trainers_) total += trainer.rate > 0 ? trainer.rate : usual;
  const uint32_t n = layout.microbatches();
  const double tolerance = 0.1 * n / static_cast<double>(trainers_.size());
  std::vector<Subtree> units;
  owners.clear();
  uint32_t first = 0;
  double reached = 0;
  size_t left = trainers_.size();
  for (auto& [id, trainer] : trainers_) {
    reached += (trainer.rate > 0 ? trainer.rate : usual) / total * n;
    const uint32_t end = --left == 0 ? n : place_cut(reached, tolerance, first, n);
    for (const Subtree subtree : layout.cover(first, end - first)) {
      units.push_back(subtree);
      owners.push_back(id);
    }
    trainer.given = end - first;
    trainer.done = 0;
    trainer.share = static_cast<double>(trainer.given) / n;
    first = end;
  }
  return units;
}

void StepRanges::completed(TrainerId trainer, uint32_t microbatches, Nanoseconds now) {
  const auto it = trainers_.find(trainer);
  if (it == trainers_.end()) return;
  it->second.done += microbatches;
  it->second.last = now;
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
