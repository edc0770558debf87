// Averages what nodes have learnt on their own, now and then.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/result.h"

namespace fastserve {

struct OuterSettings {
  int local_steps = 1;  ///< H: steps of a node between two averages
  float learning_rate = 0.7f;
  float momentum = 0.9f;

  /// kInvalidArgument naming the field.
  Status validate() const;
};

/// What an OuterOptimiser is, between two rounds. A plain value for checkpoints.
struct OuterState {
  uint64_t round = 0;
  std::vector<float> weights, momentum;
};

/// DiLoCo's outer optimiser (Douillard et al. 2023) for one slice of the weights: every H local
/// steps the mean of w_start - w_local over the nodes, each weighed by how many samples it has
/// seen, is a gradient for SGD with Nesterov's momentum:
///   m = momentum m + g;  w = w - learning_rate (g + momentum m)
///
/// Owns:     weights, momentum, a sum, and the displacements that came out of order: 4 bytes a
/// value
///           each. Local optimisers keep their own state over rounds, and are not seen here.
/// Threads:  not thread-safe; one per slice.
/// Promises: the bits depend on which nodes took part and on what they sent, never on the order in
///           which that came: it is summed in the order of the nodes' numbers.
/// Refuses:  a displacement of another size, of a round that has not begun, or with a value that is
///           not finite (kInvalidArgument). A second one of the same node, or a late one, is
///           dropped.
class OuterOptimiser {
 public:
  OuterOptimiser(const OuterSettings& settings, std::span<const float> weights);
  /// Goes on from `state`: kInvalidArgument when its parts differ in size.
  static Result<OuterOptimiser> restore(const OuterSettings& settings, OuterState state);

  enum class Added { kNew, kRepeated, kLate };
  /// `displacement`: w_start - w_local of `node`, where w_start are weights() of `round`. Requires
  /// share > 0, of which the unit does not matter.
  Result<Added> add(uint64_t round, uint32_t node, std::span<const float> displacement,
                    float share = 1);
  size_t arrived() const { return arrived_; }  ///< in this round
  bool has(uint32_t node) const;

  /// Moves by the mean of what has arrived, and begins the next round. Requires arrived() > 0.
  void step();

  uint64_t round() const { return state_.round; }
  std::span<const float> weights() const { return state_.weights; }
  const OuterState& state() const { return state_; }  ///< complete when arrived() == 0
  size_t bytes() const;

 private:
  OuterOptimiser(const OuterSettings& settings, OuterState state);
  struct Displacement {
    std::vector<float> values;
    float share;
  };
  void sum_up(std::span<const float> displacement, float share);

  OuterSettings settings_;
  OuterState state_;
  uint32_t summed_ = 0;  ///< nodes below it are in the sum, all of them
  std::vector<float> sum_;
  std::map<uint32_t, Displacement> waiting_;  ///< for one with a lower number
  size_t arrived_ = 0;
  float shares_ = 0;  ///< of those that are in the sum
};

}  // namespace fastserve
