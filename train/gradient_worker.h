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

  /// Units begin before all weights are those of their step, and wait for each of the gate's ranges
  /// where they read it first. `begins`: the first element of each. Requires a gate.
  void wait_by_range(std::vector<size_t> begins) { begins_ = std::move(begins); }

  struct Done {
    bool passed_by = false;      ///< another trainer had begun the unit
    bool dropped = false;        ///< cancelled, or overtaken by the next step, before it was done
    std::vector<double> losses;  ///< summed loss of each microbatch or chunk
    GradientHandle gradient;     ///< null for an evaluation
  };
  /// Hears of the unit's sum while the last microbatch goes backward: elements from `from` on are
  /// what they will be. Called with ever smaller ones, down to 0 unless the unit is not done. What
  /// has been told holds even then: it is the sum's.
  using Finished = std::function<void(const GradientHandle& sum, size_t from)>;
  Result<Done> compute(const WorkItem& item, const Finished& finished = {});

 private:
  class Pass;
  /// The way down to the last microbatch of a unit: the sums of what comes before it.
  struct Spine {
    const Finished& finished;
    std::vector<GradientHandle> lefts;  // from the root on; the first takes in all of them
  };

  /// Null when it was dropped. With a spine `node` ends where the unit does, and what comes back is
  /// the unit's sum.
  Result<GradientHandle> sum(const WorkItem& item, Subtree node, std::vector<double>& losses,
                             Spine* spine);
  bool cancelled() const { return cancelled_ && cancelled_(); }
  /// Nothing when the weights have gone past the item's.
  Result<std::optional<double>> run(const WorkItem& item, const Microbatch& batch, float scale,
                                    const GradientHandle& gradient, Spine* spine);

  std::unique_ptr<GradientSource> source_;
  const Sampler& sampler_;
  const EvaluationPlan* evaluation_;
  GradientPool& pool_;
  std::function<bool()> cancelled_;
  WeightsGate* gate_;
  std::vector<size_t> begins_;
};

}  // namespace fastserve
