#include "train/ledger_audit.h"

#include <fmt/format.h>

#include <algorithm>

#include "train/plan.h"
#include "train/sampler.h"

namespace fastserve {
namespace {

class Audit {
 public:
  Audit(LedgerReader reader, const TrainSpec& spec, uint64_t windows, const std::string& where)
      : reader_(std::move(reader)),
        where_(where),
        plan_(plan_training(spec, {1, 1, 1}, 1)),
        shape_{spec.block, plan_.sequences, plan_.microbatches},
        layout_(static_cast<uint32_t>(plan_.microbatches)),
        seed_(spec.seed),
        windows_(windows) {}

  Result<LedgerAudit> run(int64_t steps_done) {
    while (const auto record = reader_.next())
      FS_TRY(std::visit([this](const auto& it) { return take(it); }, *record));
    const auto known = static_cast<int64_t>(steps_.size());
    if (known < steps_done)
      return broken(known, reader_.at_end()
                               ? "has no record"
                               : fmt::format("has no record: what begins at byte {} is damaged",
                                             reader_.offset()));
    found_.steps = steps_done;
    found_.ahead = known - steps_done;
    found_.windows = windows_;
    order_.emplace(std::max<uint64_t>(1, windows_), seed_);
    seen_.assign(order_->windows(), false);
    for (int64_t step = 0; step < steps_done; step++)
      FS_TRY(count(step, reader_.step_at(steps_[static_cast<size_t>(step)])));
    return std::move(found_);
  }

 private:
  Error broken(int64_t step, std::string what) const {
    return {ErrorCode::kCorrupt, fmt::format("step {} {}", step, what), where_, ""};
  }

  /// First pass: which record of each step is the valid one.
  Status take(const LedgerBegin& begin) {
    const auto step = static_cast<int64_t>(begin.step.value);
    if (begin.incarnation <= incarnation_)
      return broken(step,
                    fmt::format("begins incarnation {} after {}", begin.incarnation, incarnation_));
    if (begin.step.value > steps_.size())
      return broken(
          static_cast<int64_t>(steps_.size()),
          fmt::format("has no record, and incarnation {} begins after it", begin.incarnation));
    if (windows_ == 0) windows_ = begin.windows;
    const LedgerBegin same{begin.incarnation,
                           begin.step,
                           windows_,
                           static_cast<uint32_t>(plan_.sequences),
                           static_cast<uint32_t>(plan_.microbatches),
                           seed_};
    if (begin != same || windows_ == 0)
      return broken(step, fmt::format("begins with other settings than the job's: {} sequences in "
                                      "{} microbatches of {} windows",
                                      begin.sequences, begin.microbatches, begin.windows));
    incarnation_ = begin.incarnation;
    next_ = begin.step.value;
    found_.incarnations++;
    return {};
  }

  Status take(const LedgerStep& record) {
    const auto step = static_cast<int64_t>(record.step.value);
    if (incarnation_ == 0 || record.incarnation != incarnation_)
      return broken(step, fmt::format("is of incarnation {} in the midst of {}", record.incarnation,
                                      incarnation_));
    if (record.step.value != next_)
      return broken(
          step, fmt::format("comes where {} is next: it counted twice, or others did not", next_));
    next_++;
    if (record.step.value < steps_.size()) {
      steps_[record.step.value] = reader_.last();
      found_.replayed_steps++;
    } else {
      steps_.push_back(reader_.last());
    }
    found_.repeated_units += static_cast<int64_t>(record.repeated);
    return {};
  }

  /// Second pass: what the step's valid record counts.
  Status count(int64_t step, LedgerStep record) {
    if (record.microbatches != layout_.microbatches())
      return broken(step, fmt::format("has {} microbatches instead of {}", record.microbatches,
                                      layout_.microbatches()));
    std::sort(record.units.begin(), record.units.end(),
              [](const auto& a, const auto& b) { return a.subtree < b.subtree; });
    uint32_t end = 0;
    for (const LedgerStep::Unit& unit : record.units) {
      const std::string named =
          fmt::format("the microbatches {} to {}", unit.subtree.first, unit.subtree.end());
      if (!layout_.is_node(unit.subtree))
        return broken(step, "counts " + named + ", which are no part of it");
      if (unit.subtree.first != end)
        return broken(step,
                      fmt::format("counts {} {}", named,
                                  unit.subtree.first < end ? "twice" : "without those before"));
      end = unit.subtree.end();
      found_.microbatches[reader_.names()[unit.trainer]] += unit.subtree.count;
      for (uint32_t g = unit.subtree.first; g < end; g++) FS_TRY(count_windows(step, g));
    }
    if (end != layout_.microbatches())
      return broken(step, fmt::format("counts only the first {} microbatches", end));
    if (!record.applied) found_.skipped++;
    return {};
  }

  Status count_windows(int64_t step, uint32_t g) {
    const auto [first, end] = Sampler::sequences_of(shape_, static_cast<int>(g));
    const uint64_t before = static_cast<uint64_t>(step) * static_cast<uint64_t>(shape_.sequences);
    for (uint64_t sequence = before + first; sequence < before + end; sequence++) {
      if (order_->epoch(sequence) != epoch_) {
        if (in_epoch_ != order_->windows())
          return broken(step, fmt::format("begins an epoch when {} windows of the last one have "
                                          "not counted",
                                          order_->windows() - in_epoch_));
        seen_.assign(order_->windows(), false);
        in_epoch_ = 0;
        epoch_ = order_->epoch(sequence);
      }
      const uint64_t window = order_->window(sequence);
      if (seen_[window])
        return broken(step,
                      fmt::format("counts window {} a second time in epoch {}", window, epoch_));
      seen_[window] = true;
      found_.samples++;
      if (++in_epoch_ == order_->windows()) found_.whole_epochs++;
    }
    return {};
  }

  LedgerReader reader_;
  std::string where_;
  TrainPlan plan_;
  Sampler::Shape shape_;
  StepLayout layout_;
  uint64_t seed_, windows_;
  uint64_t incarnation_ = 0, next_ = 0;
  std::vector<size_t> steps_;  // where each step's valid record begins
  std::optional<WindowOrder> order_;
  std::vector<bool> seen_;  // windows of the epoch
  uint64_t epoch_ = 0, in_epoch_ = 0;
  LedgerAudit found_;
};

}  // namespace

Json LedgerAudit::to_json() const {
  Json trainers;
  for (const auto& [name, count] : microbatches) trainers.set(name, count);
  Json json = Json::object({{"steps", steps},
                            {"samples", samples},
                            {"windows", windows},
                            {"whole_epochs", whole_epochs},
                            {"incarnations", incarnations},
                            {"replayed_steps", replayed_steps},
                            {"repeated_units", repeated_units},
                            {"skipped_steps", skipped},
                            {"steps_ahead", ahead}});
  json.set("microbatches", std::move(trainers));
  return json;
}

Result<LedgerAudit> audit(std::span<const std::byte> ledger, const TrainSpec& spec,
                          int64_t steps_done, uint64_t windows, const std::string& where) {
  FS_ASSIGN(LedgerReader reader, LedgerReader::open(ledger, where));
  return Audit(std::move(reader), spec, windows, where).run(steps_done);
}

}  // namespace fastserve
