// Weights on their way to the card: through a ring of pieces of pinned memory, some being filled
// while others are copied.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "gpu/fill_threads.h"
#include "gpu/pinned_shelf.h"
#include "gpu/runtime.h"

namespace fastserve::gpu {

/// Owns:    pinned memory, as much of the card's, and threads, from the first use until release().
/// Threads: one caller; the work of filling is split over some threads of its own.
/// Errors:  kResourceExhausted when there is no room; copies that fail are kept by the runtime.
class Staging {
 public:
  /// A link of 50 GB/s takes 40 us for a piece: long beside starting a copy and a kernel. All of
  /// them together stay in a processor's cache between the host's writing and the link's reading.
  /// On an H200 a model of 1.2 GB took 48 ms so, and 79 ms through four such pieces.
  static constexpr size_t kPiece = size_t{2} << 20, kPieces = 8;

  /// `shelf`: where its pinned memory comes from and goes to; may be null.
  explicit Staging(Runtime& runtime, size_t piece = kPiece, PinnedShelf* shelf = nullptr)
      : runtime_(runtime), shelf_(shelf), most_(piece), piece_(piece) {}
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() { release(); }

  /// About so many bytes come: pinning memory takes time, too, and few bytes pass through less of
  /// it.
  void expect(size_t bytes);

  /// Copies bytes that may change as soon as this returns.
  Status copy(void* device, const void* host, size_t bytes);

  /// Some of a piece's rows.
  struct Rows {
    size_t first, count;  ///< to be written
    size_t of, all;       ///< the piece's first row, and how many it has
    std::byte* piece;     ///< room for all of them, in any order of their bytes
  };
  /// Takes `rows` rows of `row_bytes` through the card's side of the staging, some at a time,
  /// always a multiple of `unit` but for the last: write() puts rows on the host, from any thread;
  /// then take(first, count, staged) starts what reads them on the card. The copies go on beside
  /// the card's work.
  Status rows(size_t rows, size_t row_bytes, size_t unit,
              const std::function<void(const Rows& rows)>& write,
              const std::function<void(size_t first, size_t count, const void* staged)>& take);

  /// Calls part(i) for each i < n on the threads that fill.
  void side_by_side(size_t n, const std::function<void(size_t i)>& part);

  /// Waits for what is on its way and gives the memory back.
  void release();

 private:
  /// Half of the ring is filled while half of it is on its way.
  static constexpr size_t kAhead = kPieces / 2;
  /// Pieces of `bytes` but for the last.
  struct Job {
    size_t pieces, bytes, last;
    std::function<void(size_t piece, size_t part, size_t parts, std::byte* to)> fill;
    /// Says when the piece may be written again.
    std::function<Ticket(size_t piece, std::byte* pinned, std::byte* staged)> start;
  };
  Status run(const Job& job, bool on_card);
  Status reserve(size_t bytes, bool on_card);
  void wait_for_all();
  void give_back_pinned();
  FillThreads& threads();

  Runtime& runtime_;
  PinnedShelf* const shelf_;
  const size_t most_;
  size_t piece_;     ///< bytes, but for rows that are longer
  size_t room_ = 0;  ///< of a piece
  std::unique_ptr<DeviceBuffer> pinned_;
  Memory staged_;
  Ticket done_[kPieces] = {};  ///< when a place of the ring may be written again
  size_t turn_ = 0;
  std::unique_ptr<FillThreads> threads_;
};

}  // namespace fastserve::gpu
