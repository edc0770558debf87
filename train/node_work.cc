#include "train/node_work.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "base/check.h"

namespace fastserve {
namespace {

void cut(Subtree node, uint32_t size, std::vector<Subtree>& out) {
  if (node.count <= size) {
    out.push_back(node);
    return;
  }
  const auto [left, right] = StepLayout::children(node);
  cut(left, size, out);
  cut(right, size, out);
}

}  // namespace

NodeWork::NodeWork(uint32_t trainers) : trainers_(trainers) {
  std::iota(trainers_.begin(), trainers_.end(), 0U);
}

void NodeWork::lose(uint32_t trainer) {
  FS_CHECK(trainers_.size() > 1);
  std::erase(trainers_, trainer);
  if (current_) ledger_.lose({trainer});
}

uint32_t NodeWork::piece_size(uint32_t microbatches, uint32_t trainers) {
  const uint32_t wanted = trainers == 1 ? 1 : 4 * trainers;
  return microbatches <= wanted ? (trainers == 1 ? microbatches : 1)
                                : std::bit_floor(microbatches / wanted);
}

void NodeWork::give(WorkItem unit) { waiting_.push_back(std::move(unit)); }

void NodeWork::weights_ready(StepId step) {
  ready_ = step;
  std::erase_if(waiting_, [&](const WorkItem& unit) { return unit.step < step; });
  if (current_ && current_->step < step) current_.reset();
}

void NodeWork::forget(uint64_t round) {
  std::erase_if(waiting_, [&](const WorkItem& unit) { return unit.round == round; });
  if (current_ && current_->round == round) current_.reset();
}

void NodeWork::begin_next() {
  const auto next = std::find_if(waiting_.begin(), waiting_.end(),
                                 [&](const WorkItem& unit) { return unit.step == *ready_; });
  if (next == waiting_.end()) return;
  current_ = std::move(*next);
  waiting_.erase(next);
  round_++;
  pieces_.clear();
  const bool gradient = current_->kind == WorkItem::Kind::kGradient;
  const auto trainers = static_cast<uint32_t>(trainers_.size());
  cut(current_->subtree, gradient ? piece_size(current_->subtree.count, trainers) : 1, pieces_);
  losses_.assign(current_->subtree.count, 0);
  ledger_ = StepLedger(static_cast<uint32_t>(pieces_.size()));
  for (const uint32_t trainer : trainers_) ledger_.join({trainer});
}

std::vector<NodeWork::Piece> NodeWork::hand_out(Nanoseconds now) {
  std::vector<Piece> out;
  if (!ready_) return out;
  if (!current_) begin_next();
  if (!current_) return out;
  for (Handout& given : ledger_.hand_out(now)) {
    WorkItem item = *current_;
    item.round = round_;
    item.unit = given.unit;
    item.subtree = pieces_[given.unit];
    item.claim = std::move(given.claim);
    out.push_back({given.trainer.value, std::move(item)});
  }
  return out;
}

std::optional<NodeWork::UnitDone> NodeWork::done(uint32_t trainer, uint64_t round, uint32_t piece,
                                                 std::span<const double> losses) {
  if (!current_ || round != round_) return std::nullopt;
  if (ledger_.complete({trainer}, piece))
    std::copy(losses.begin(), losses.end(),
              losses_.begin() + (pieces_[piece].first - current_->subtree.first));
  if (!ledger_.done()) return std::nullopt;
  UnitDone unit{current_->kind, current_->round, current_->unit, std::move(losses_)};
  current_.reset();
  return unit;
}

}  // namespace fastserve
