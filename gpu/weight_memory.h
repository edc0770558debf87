// The card's memory for weights, of which many lie in one allocation.
#pragma once

#include <memory>

#include "gpu/runtime.h"

namespace fastserve::gpu {

/// A card takes about as long for a little memory as for much, and a model has hundreds of
/// matrices.
///
/// Owns:    the allocation that pieces are being taken from; pieces own theirs together.
/// Threads: one caller.
class WeightMemory {
 public:
  /// Gone with the last piece of its allocation.
  class Piece {
   public:
    Piece() = default;
    void* data() const { return data_; }
    size_t bytes() const { return bytes_; }

   private:
    friend WeightMemory;
    std::shared_ptr<Memory> block_;
    void* data_ = nullptr;
    size_t bytes_ = 0;
  };

  explicit WeightMemory(Runtime& runtime) : runtime_(runtime) {}

  /// About so many bytes will be taken. Where the card has not twice as much, nothing is taken for
  /// several pieces, since some of it may be left over.
  void expect(size_t bytes) { expected_ = bytes <= runtime_.available() / 2 ? bytes : 0; }
  /// Zeroed, 256-byte aligned. Errors: kResourceExhausted.
  Result<Piece> take(size_t bytes);
  /// What is left over is given back with the last piece.
  void finish();

 private:
  Result<Piece> own(size_t bytes);

  Runtime& runtime_;
  size_t expected_ = 0, used_ = 0;
  std::shared_ptr<Memory> block_;
};

}  // namespace fastserve::gpu
