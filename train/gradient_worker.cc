#include "train/gradient_worker.h"

#include "base/check.h"

namespace fastserve {

/// One pass of the source: holds what it reads of the weights, and adds its gradient up as far as
/// it goes.
class GradientWorker::Pass final : public PassFlow {
 public:
  Pass(GradientWorker& worker, StepId weights, const GradientHandle& gradient, Spine* spine)
      : worker_(worker),
        weights_(weights),
        gradient_(gradient),
        spine_(spine),
        told_(gradient != nullptr ? gradient->elements() : 0) {}
  ~Pass() override {
    if (worker_.gate_ != nullptr) worker_.gate_->leave_read(held_);
  }
  Pass(const Pass&) = delete;

  bool await_weights(size_t end) override {
    const std::vector<size_t>& begins = worker_.begins_;
    for (; held_ < begins.size() && begins[held_] < end; held_++)
      if (!worker_.gate_->enter_read(weights_, held_)) return !(refused_ = true);
    return true;
  }
  void gradient_final(size_t from) override {
    if (spine_ == nullptr || from >= told_) return;
    for (size_t i = spine_->lefts.size(); i-- > 0;)
      worker_.source_->add_part(spine_->lefts[i]->data(), behind(i)->data(), from, told_);
    tell(from);
  }
  /// What was not told of on the way.
  void end() {
    if (spine_ == nullptr || told_ == 0) return;
    if (told_ < gradient_->elements()) return gradient_final(0);
    for (size_t i = spine_->lefts.size(); i-- > 0;)
      worker_.source_->add(spine_->lefts[i]->data(), behind(i)->data());
    tell(0);
  }
  /// All weights at once, unless they are waited for range by range.
  bool begin() {
    if (worker_.gate_ == nullptr || !worker_.begins_.empty()) return true;
    if (!worker_.gate_->enter_read(weights_)) return false;
    held_ = worker_.gate_->ranges();
    return true;
  }
  bool refused() const { return refused_; }

 private:
  const GradientHandle& behind(size_t i) const {
    return i + 1 < spine_->lefts.size() ? spine_->lefts[i + 1] : gradient_;
  }
  void tell(size_t from) {
    told_ = from;
    if (spine_->finished)
      spine_->finished(spine_->lefts.empty() ? gradient_ : spine_->lefts.front(), from);
  }

  GradientWorker& worker_;
  const StepId weights_;
  const GradientHandle& gradient_;
  Spine* const spine_;
  size_t told_;      // elements from here on
  size_t held_ = 0;  // ranges of the weights
  bool refused_ = false;
};

GradientWorker::GradientWorker(std::unique_ptr<GradientSource> source, const Sampler& sampler,
                               const EvaluationPlan* evaluation, GradientPool& pool,
                               std::function<bool()> cancelled, WeightsGate* gate)
    : source_(std::move(source)),
      sampler_(sampler),
      evaluation_(evaluation),
      pool_(pool),
      cancelled_(std::move(cancelled)),
      gate_(gate) {}

Result<std::optional<double>> GradientWorker::run(const WorkItem& item, const Microbatch& batch,
                                                  float scale, const GradientHandle& gradient,
                                                  Spine* spine) {
  Pass pass(*this, item.weights, gradient, spine);
  if (cancelled() || !pass.begin()) return std::optional<double>();
  FS_ASSIGN(const double loss,
            source_->run_along(batch, scale, gradient ? gradient->data() : nullptr, pass));
  if (pass.refused()) return std::optional<double>();
  pass.end();
  return std::optional(loss);
}

Result<GradientWorker::Done> GradientWorker::compute(const WorkItem& item,
                                                     const Finished& finished) {
  Done done;
  if (item.claim != nullptr && item.claim->exchange(true)) {
    done.passed_by = true;
    return done;
  }
  if (item.kind == WorkItem::Kind::kEvaluation) {
    FS_CHECK(evaluation_ != nullptr);
    FS_ASSIGN(const auto loss,
              run(item, evaluation_->chunk(item.subtree.first), 0, nullptr, nullptr));
    done.dropped = !loss;
    if (loss) done.losses.push_back(*loss);
    return done;
  }
  Spine spine{finished, {}};
  FS_ASSIGN(done.gradient, sum(item, item.subtree, done.losses, &spine));
  done.dropped = done.gradient == nullptr;
  return done;
}

Result<GradientHandle> GradientWorker::sum(const WorkItem& item, Subtree node,
                                           std::vector<double>& losses, Spine* spine) {
  if (node.count == 1) {
    FS_ASSIGN(const GradientHandle gradient, pool_.take());
    const Microbatch batch =
        sampler_.microbatch(static_cast<int64_t>(item.step.value), static_cast<int>(node.first));
    FS_ASSIGN(const auto loss, run(item, batch, item.scale, gradient, spine));
    if (!loss) return GradientHandle();
    losses.push_back(*loss);
    return spine == nullptr || spine->lefts.empty() ? gradient : spine->lefts.front();
  }
  const auto [left, right] = StepLayout::children(node);
  FS_ASSIGN(const GradientHandle first, sum(item, left, losses, nullptr));
  if (first == nullptr) return first;
  if (spine != nullptr) {
    spine->lefts.push_back(first);
    return sum(item, right, losses, spine);
  }
  FS_ASSIGN(const GradientHandle second, sum(item, right, losses, nullptr));
  if (second == nullptr) return second;
  source_->add(first->data(), second->data());
  return first;
}

}  // namespace fastserve
