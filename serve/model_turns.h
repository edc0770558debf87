// Which models lie in a device's memory where not all of them fit.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"

namespace fastserve {

/// Whose turn in the memory it is, and who has to leave for it.
///
/// - Models that are asked and not there come one at a time, in the order in which their waiting
///   began. Nobody overtakes, though it be small.
/// - Room is made by models that nobody asks, the one idle for longest first.
/// - Where those do not suffice, models that are being asked make room, the one there for longest
///   first, once they have had a turn of some time: from then on they are closed to requests that
///   have not begun, and leave when those that have begun are answered. So a model waits for no
///   more than a turn, an answer and a load of each one before it.
/// - A model that is answering never leaves.
///
/// Owns:    the bookkeeping; never a model or its memory.
/// Threads: one caller.
class ModelTurns {
 public:
  /// Bytes of the device that a model takes while it is there, and more while it is loaded.
  struct Need {
    uint64_t held = 0, loading = 0;
    uint64_t total() const { return held + loading; }
  };
  /// Each of `needs` must fit into `budget` by itself. `turn`: what a model has when others wait.
  ModelTurns(std::vector<Need> needs, uint64_t budget, Nanoseconds turn);

  /// Those that are there from the start: in their order, each that fits beside the ones before it.
  std::vector<size_t> begin();

  /// What clients do with a model.
  struct Use {
    bool answering = false;  ///< requests have begun and not ended
    bool asked = false;      ///< others have not begun
  };
  struct Plan {
    std::vector<size_t> leave;   ///< first of all
    std::optional<size_t> come;  ///< then
    std::vector<bool> closed;    ///< of each model: it takes no request that has not begun
  };
  /// What is to be done before the next step; to be called while no model is on its way.
  /// `available` says what the device can still give, and is asked before a model comes: more idle
  /// models leave when that is less than it should be.
  Plan plan(std::span<const Use> uses, const std::function<uint64_t()>& available, Nanoseconds now);
  /// It could not come after all.
  void gone(size_t model) { models_.at(model).here = false; }

 private:
  struct Model {
    Need need;
    bool here = false;
    bool arrived = false;     ///< plan() has seen it there
    Nanoseconds since{0};     ///< it is there
    Nanoseconds used{0};      ///< somebody last asked it
    int64_t waits_since = 0;  ///< a number that grows; 0: it does not wait
  };
  void note(std::span<const Use> uses, Nanoseconds now);
  std::optional<size_t> first_waiting() const;
  /// Those that are there, first to leave first; idle ones before others.
  std::vector<size_t> order_of_leaving(std::span<const Use> uses) const;
  uint64_t held() const;

  std::vector<Model> models_;
  uint64_t budget_;
  Nanoseconds turn_;
  int64_t waits_ = 0;
};

}  // namespace fastserve
