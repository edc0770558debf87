// Weights that lie in pinned memory, on their way to the card: copied from where they lie.
#pragma once

#include <functional>
#include <span>

#include "gpu/runtime.h"

namespace fastserve::gpu {

/// What gpu/staging.h is for memory that the card does not reach, without the host's part in it.
/// Whose bytes are read leaves them as they are, and does not free them, until release() returns.
///
/// Owns:    some of the card's memory, from the first rows until release().
/// Threads: one caller.
/// Errors:  kResourceExhausted when there is no room; copies that fail are kept by the runtime.
class DirectRows {
 public:
  /// A copy takes a link of 50 GB/s about two microseconds beside its bytes, and the host some
  /// twenty for all that a piece needs: little beside the 330 of such a piece.
  static constexpr size_t kPiece = size_t{16} << 20, kPieces = 4;

  explicit DirectRows(Runtime& runtime, size_t piece = kPiece) : runtime_(runtime), most_(piece) {}
  DirectRows(const DirectRows&) = delete;
  DirectRows& operator=(const DirectRows&) = delete;
  ~DirectRows() { release(); }

  /// About so many bytes come, for which there has to be room beside large pieces.
  void expect(size_t bytes) { expected_ = bytes; }

  /// Ordered as the card's other work is.
  void copy(void* device, std::span<const std::byte> pinned);

  /// Puts bytes `at` a place of a piece; those that follow one another on both sides go together.
  using Put = std::function<void(size_t at, std::span<const std::byte> pinned)>;
  /// Takes `rows` rows of `row_bytes` through pieces, always a multiple of `unit` but for the last:
  /// lay() puts a piece's rows; then take(first, count, staged) starts what reads them on the card.
  /// The copies go on beside the card's work.
  Status rows(size_t rows, size_t row_bytes, size_t unit,
              const std::function<void(size_t first, size_t count, const Put& put)>& lay,
              const std::function<void(size_t first, size_t count, const void* staged)>& take);

  /// Waits for what is on its way and gives the memory back.
  void release();

 private:
  void choose_piece();
  Status reserve(size_t bytes);
  void wait_for_all();

  Runtime& runtime_;
  const size_t most_;
  size_t expected_ = 0;
  size_t piece_ = 0;  ///< bytes, but for rows that are longer; 0: not chosen
  size_t room_ = 0;   ///< of a piece
  Memory staged_;
  Ticket done_[kPieces] = {};  ///< when a piece's place may be written again
  Ticket copied_ = 0;          ///< of copy()
  size_t turn_ = 0;
};

}  // namespace fastserve::gpu
