// Which tokens each microbatch sees: a pure function of the seed.
#pragma once

#include <cstdint>
#include <utility>

#include "model/trainable.h"
#include "train/dataset.h"

namespace fastserve {

/// A keyed permutation of 0..n-1 that is never written down (Feistel network over the next power of
/// four, walked until it lands inside; Black & Rogaway 2002).
class Permutation {
 public:
  /// Requires n >= 1.
  Permutation(uint64_t n, uint64_t key);
  uint64_t operator()(uint64_t i) const;

 private:
  uint64_t n_, key_;
  int half_bits_;
};

/// Which window each sequence of a job is, counted from 0 over all epochs: every window once an
/// epoch, in an order that (seed, epoch) alone decide.
class WindowOrder {
 public:
  /// Requires windows >= 1.
  WindowOrder(uint64_t windows, uint64_t seed);
  uint64_t windows() const { return windows_; }  ///< of an epoch
  uint64_t epoch(uint64_t sequence) const { return sequence / windows_; }
  uint64_t window(uint64_t sequence) const;
  uint64_t epoch_key(uint64_t epoch) const;  ///< decides the epoch's order, and its offset

 private:
  uint64_t windows_, seed_;
};

/// Cuts the training tokens into windows and deals them out.
///
/// An epoch is a set of non-overlapping windows of `block` tokens (each with the token after it as
/// last target), whose common offset and order depend on (seed, epoch) alone. Every window comes
/// exactly once an epoch; the last step of an epoch is filled up from the next one.
/// Threads: const calls from any thread.
class Sampler {
 public:
  struct Shape {
    int block;
    int sequences;     ///< per step
    int microbatches;  ///< per step, at most `sequences`
  };
  /// `tokens` must outlive this and hold more than `block`.
  Sampler(const TokenArray& tokens, Shape shape, uint64_t seed);

  uint64_t windows() const { return order_.windows(); }  ///< sequences of an epoch
  /// First token of the window that is sequence `index` of the job, counted from 0 over all epochs.
  uint64_t window_start(uint64_t index) const;
  /// Which of a step's sequences microbatch g has: [first, end).
  static std::pair<uint64_t, uint64_t> sequences_of(const Shape& shape, int g);
  /// Microbatch g of a step. The step's sequences are shared out as evenly as they go.
  Microbatch microbatch(int64_t step, int g) const;
  /// Rows of the largest microbatch.
  int max_rows() const;
  const Shape& shape() const { return shape_; }

 private:
  const TokenArray& tokens_;
  Shape shape_;
  WindowOrder order_;
  uint64_t offsets_;
};

/// Cuts the validation tokens into windows in the order of the text, and those into chunks.
///
/// Threads: const calls from any thread.
class EvaluationPlan {
 public:
  /// sequences 0: the whole split, its last window short; otherwise that many windows spread
  /// evenly. A chunk is as many windows as fit `max_rows`, at least one.
  EvaluationPlan(const TokenArray& tokens, int block, int sequences, int max_rows);

  uint32_t chunks() const { return chunks_; }
  int64_t counted() const { return counted_; }  ///< targets in all chunks
  Microbatch chunk(uint32_t index) const;

 private:
  uint64_t window_start(uint64_t index) const;
  const TokenArray& tokens_;
  int block_;
  uint64_t windows_, used_, per_chunk_;
  uint32_t chunks_;
  int64_t counted_ = 0;
};

}  // namespace fastserve
