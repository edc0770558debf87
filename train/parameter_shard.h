// One parameter server's share of the weights, and of the optimiser.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/ids.h"
#include "train/backend.h"
#include "train/gradient_tree.h"
#include "train/spec.h"

namespace fastserve {

/// A copy of what a shard holds: three equally long runs of floats from `offset` on.
struct ShardState {
  size_t offset = 0;
  StepId step;  ///< that these weights are for
  std::vector<float> weights, m, v;
};

/// What every shard is told once the whole step's gradient is known.
struct ApplyOrder {
  StepId step;
  double learning_rate = 0;
  double grad_scale = 1;  ///< clipping and loss scale
  int64_t update = 1;     ///< AdamW's t: updates so far, this one included
  double share = 1;       ///< of a step: its decays go that part of their way
};

/// Sums the gradients of its run of tiles and updates the masters there with AdamW.
///
/// Owns:     AdamW's m and v for its range. The masters and their packed copies are the backend's.
/// Where the backend's memory is not the host's, so are m and v, and whole runs of tiles are worked
/// on at once; nothing of a parameter comes to the host but in snapshot(). Gradients in the memory
/// of another of its members are fetched when the step is whole: the shard's range of them. Where
/// the members reduce, each adds up its own, and their sums are added up by reduce_from().
/// Threads:  not thread-safe. Shards of one job work at the same time on their disjoint ranges.
/// Promises: the same bits however many shards there are, and in whatever order gradients come;
///           where the members reduce, whoever of a member's trainers computed them.
/// Refuses:  a subtree outside the step, a step that has not begun (kInvalidArgument). Repeats and
///           late comers are dropped, and counted.
class ParameterShard {
 public:
  struct Range {
    size_t first_tile, tiles;  ///< into backend.tiles()
    size_t begin, end;         ///< elements; the ranges of all shards join without gaps
  };
  /// Cuts the tiles into at most `shards` runs of about equal size.
  static std::vector<Range> ranges(TrainBackend& backend, int shards) {
    return ranges(backend.tiles(), backend.elements(), shards);
  }
  static std::vector<Range> ranges(const std::vector<ParameterTile>& tiles, size_t elements,
                                   int shards);

  static std::vector<size_t> begins(const std::vector<Range>& ranges);

  /// `backend` must outlive this. `moments`: zeroed memory of the backend's for 2 (end - begin)
  /// floats; null where that is the host's.
  ParameterShard(TrainBackend& backend, Range range, const TrainSpec& spec, StepLayout layout,
                 StepId first_step, std::unique_ptr<DeviceBuffer> moments = nullptr);

  enum class Added { kMore, kComplete, kRepeated, kLate };
  /// kComplete: this one was the last missing.
  /// kResourceExhausted: there is no room to fetch what lies with other members.
  Result<Added> add(StepId step, Subtree subtree, GradientHandle sum);
  /// Sum of squares of each tile's gradient, in tile order. Requires a complete step; once a step.
  std::vector<double> squares();
  /// Updates the weights and begins the next step. Requires the current step and its squares().
  void apply(const ApplyOrder& order);
  /// Drops the step's gradient and begins the next step.
  void skip(StepId step);
  /// Drops what there is of a gradient, and goes on with `step` and steps of another layout.
  void begin(StepLayout layout, StepId step);

  StepId step() const { return step_; }
  const Range& range() const { return range_; }
  int64_t dropped() const { return dropped_; }
  /// Elements that are fetched from other members at once, and floats of scratch that it takes.
  static constexpr size_t kPiece = size_t{1} << 22;
  static size_t scratch_floats(size_t elements, uint32_t microbatches) {
    return GradientTree::depth(microbatches) * std::min(elements, kPiece);
  }
  size_t bytes() const { return 2 * elements() * sizeof(float); }
  /// What has gone wrong on a device since it was last asked: to be asked behind squares() and
  /// snapshots, which mean nothing then.
  Status status() { return backend_.sync(); }

  std::shared_ptr<const ShardState> snapshot() const;
  /// The same without m and v.
  std::shared_ptr<ShardState> weights_snapshot() const;
  /// The weights of its range, as they are. Requires them in the host's memory.
  std::span<const float> weights() const {
    FS_CHECK(backend_.host_memory());
    return backend_.masters().subspan(range_.begin, elements());
  }
  /// Requires them in the host's memory.
  std::span<const float> second_moments() const {
    FS_CHECK(backend_.host_memory());
    return {v(), elements()};
  }
  /// Takes this range's part of m and v, each of all elements.
  void restore(std::span<const float> m, std::span<const float> v);
  /// The same from the range's own parts.
  void restore_range(std::span<const float> m, std::span<const float> v);

 private:
  void next_step();
  Status fetch_others();
  Status reduce_members();
  size_t elements() const { return range_.end - range_.begin; }
  float* m() const { return moments_; }
  float* v() const { return moments_ + elements(); }
  /// A tile, or a run of neighbours, by itself.
  void update(AdamW op, const ParameterTile& tile, const float* sum, float* masters);

  TrainBackend& backend_;
  Range range_;
  std::span<const ParameterTile> tiles_;
  AdamW hyper_{};  // the settings that stay
  StepLayout layout_;
  GradientTree tree_;
  GradientPool fetched_;                   // sums whose first part was another member's
  std::unique_ptr<DeviceBuffer> scratch_;  // of their sums
  std::map<int, std::unique_ptr<DeviceBuffer>> zeros_;  // of members that computed nothing
  StepId step_;
  std::vector<const float*> sums_;  // per tile, between squares() and apply()
  std::vector<float> own_moments_;
  std::unique_ptr<DeviceBuffer> device_moments_;
  float* moments_;  // m, then v: one of the two
  int64_t dropped_ = 0;
};

}  // namespace fastserve
