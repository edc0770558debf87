#include "train/gradient_worker.h"

#include "base/check.h"

namespace fastserve {

GradientWorker::GradientWorker(std::unique_ptr<GradientSource> source, const Sampler& sampler,
                               const EvaluationPlan* evaluation, GradientPool& pool,
                               std::function<bool()> cancelled, WeightsGate* gate)
    : source_(std::move(source)),
      sampler_(sampler),
      evaluation_(evaluation),
      pool_(pool),
      cancelled_(std::move(cancelled)),
      gate_(gate) {}

Result<std::optional<double>> GradientWorker::run(StepId step, const Microbatch& batch, float scale,
                                                  float* grad) {
  if (cancelled() || (gate_ != nullptr && !gate_->enter_read(step))) return std::optional<double>();
  auto loss = source_->run(batch, scale, grad);
  if (gate_ != nullptr) gate_->leave_read();
  if (!loss.ok()) return loss.error();
  return std::optional(*loss);
}

Result<GradientWorker::Done> GradientWorker::compute(const WorkItem& item) {
  Done done;
  if (item.claim != nullptr && item.claim->exchange(true)) {
    done.passed_by = true;
    return done;
  }
  if (item.kind == WorkItem::Kind::kEvaluation) {
    FS_CHECK(evaluation_ != nullptr);
    FS_ASSIGN(const auto loss,
              run(item.weights, evaluation_->chunk(item.subtree.first), 0, nullptr));
    done.dropped = !loss;
    if (loss) done.losses.push_back(*loss);
    return done;
  }
  FS_ASSIGN(done.gradient, sum(item, item.subtree, done.losses));
  done.dropped = done.gradient == nullptr;
  return done;
}

Result<GradientHandle> GradientWorker::sum(const WorkItem& item, Subtree node,
                                           std::vector<double>& losses) {
  if (node.count == 1) {
    FS_ASSIGN(GradientHandle gradient, pool_.take());
    const Microbatch batch =
        sampler_.microbatch(static_cast<int64_t>(item.step.value), static_cast<int>(node.first));
    FS_ASSIGN(const auto loss, run(item.weights, batch, item.scale, gradient->data()));
    if (!loss) return GradientHandle();
    losses.push_back(*loss);
    return gradient;
  }
  const auto [left, right] = StepLayout::children(node);
  FS_ASSIGN(GradientHandle first, sum(item, left, losses));
  if (first == nullptr) return first;
  FS_ASSIGN(const GradientHandle second, sum(item, right, losses));
  if (second == nullptr) return second;
  source_->add(first->data(), second->data());
  return first;
}

}  // namespace fastserve
