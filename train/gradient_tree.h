// The sum of a step's gradients in the canonical order.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "model/train_ops.h"
#include "train/gradient_buffer.h"
#include "train/step_layout.h"

namespace fastserve {

/// Joins the partial gradients of one step into their canonical sum.
///
/// Owns:     handles of the received buffers, nothing else: the sum is taken when all are there, in
///           one pass over memory, block by block.
/// Threads:  not thread-safe; one per parameter shard. Several trees may hold the same buffers when
///           they join disjoint ranges of them.
/// Promises: the sum's bits depend only on the microbatches' bits, never on who sent what when.
class GradientTree {
 public:
  explicit GradientTree(StepLayout layout);

  enum class Added {
    kNew,       ///< some of its microbatches were missing
    kRepeated,  ///< all of them were there; dropped
  };
  /// Requires a node of the layout; or, where sum_of() is what takes sums, any run of it, and all
  /// of them the same or disjoint.
  Added add(Subtree subtree, GradientHandle sum);
  bool complete() const { return covered_ == layout_.microbatches(); }

  /// Where [from, from + n) of a buffer lie for the operations: there, or in `room` (n floats),
  /// into which they were copied.
  using Fetch =
      std::function<const float*(const GradientBuffer& buffer, size_t from, size_t n, float* room)>;
  /// The same where some buffers lie in another memory: takes the sum into `result`, which may be
  /// the leftmost buffer, `piece` elements after one another, and is left with that buffer alone.
  /// `scratch`: depth() * piece floats, of the operations' memory like `result`.
  void join_into(GradientHandle result, size_t from, size_t n, size_t piece, float* scratch,
                 const Fetch& fetch, const TrainOps& ops);
  /// Adds up elements [from, from + n) of the member's own buffers, in the order of their
  /// microbatches, in the first of them; null when it has none. `ops`: the member's.
  GradientHandle sum_of(int member, size_t from, size_t n, const TrainOps& ops);
  /// Is left with the buffer that the sum has been taken into elsewhere.
  void become(GradientHandle whole);
  /// Floats of an element that join_into() may have to keep beside its sum.
  static size_t depth(uint32_t microbatches);
  /// The leftmost buffer, and whether all are `member`'s. Require a buffer.
  const GradientHandle& leftmost() const { return parts_.begin()->second.second; }
  bool all_of(int member) const;

  /// The sum over elements [from, from + n) of all buffers, which lies in the leftmost buffer.
  /// Requires complete(). Each element may be joined once.
  const float* join(size_t from, size_t n, const TrainOps& ops);

  /// The same where the buffers are a device's: sums are taken in the buffers themselves, each in
  /// one operation over all n. The same bits.
  float* join_in_place(size_t from, size_t n, const TrainOps& ops);

  /// Lets go of every buffer but the one that holds the sum.
  void release_parts();
  /// The buffer that holds the sum. Requires complete().
  const GradientHandle& whole() const { return parts_.begin()->second.second; }
  /// Starts over.
  void clear();

 private:
  static constexpr size_t kBlock = 4096;  // floats: three blocks stay in the first-level cache

  const float* sum(Subtree node, size_t from, size_t n, float* into, size_t depth,
                   const TrainOps& ops);

  struct Pieces;
  const float* sum_fetched(Subtree node, size_t from, size_t n, float* into, size_t depth,
                           const Pieces& pieces);

  float* sum_in_place(Subtree node, size_t from, size_t n, const TrainOps& ops);

  StepLayout layout_;
  std::map<uint32_t, std::pair<Subtree, GradientHandle>> parts_;  // by first microbatch; disjoint
  uint32_t covered_ = 0;
  std::vector<float> scratch_;
};

}  // namespace fastserve
