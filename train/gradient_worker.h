// One trainer's work on one unit.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "train/backend.h"
#include "train/gradient_buffer.h"
#include "train/job.h"
#include "train/sampler.h"
#include "train/weights_gate.h"

namespace fastserve {

/// Computes the units it is given: a partial gradient of the step, or losses of an evaluation.
///
/// Owns:     its gradient source; gradients live in buffers of the pool.
/// Threads:  one caller. The sampler, the plan and the pool must outlive it and may be shared.
/// Promises: the partial sum of a subtree is taken along the canonical tree.
class GradientWorker {
 public:
  /// `cancelled` is asked before each microbatch; empty: never. `gate`: kept by those who change
  /// the weights; null: nobody changes them while a unit is at work.
  GradientWorker(std::unique_ptr<GradientSource> source, const Sampler& sampler,
                 const EvaluationPlan* evaluation, GradientPool& pool,
                 std::function<bool()> cancelled = {}, WeightsGate* gate = nullptr);

  struct Done {
    bool passed_by = false;      ///< another trainer had begun the unit
    bool dropped = false;        ///< cancelled, or overtaken by the next step, before it was done
    std::vector<double> losses;  ///< summed loss of each microbatch or chunk
    GradientHandle gradient;     ///< null for an evaluation
  };
  Result<Done> compute(const WorkItem& item);

 private:
  /// Null when it was dropped.
  Result<GradientHandle> sum(const WorkItem& item, Subtree node, std::vector<double>& losses);
  bool cancelled() const { return cancelled_ && cancelled_(); }
  /// Nothing when the weights have gone past those of `step`.
  Result<std::optional<double>> run(StepId step, const Microbatch& batch, float scale, float* grad);

  std::unique_ptr<GradientSource> source_;
  const Sampler& sampler_;
  const EvaluationPlan* evaluation_;
  GradientPool& pool_;
  std::function<bool()> cancelled_;
  WeightsGate* gate_;
};

}  // namespace fastserve
