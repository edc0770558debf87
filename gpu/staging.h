// Weights on their way to the card: through two pieces of pinned memory, one being filled while
// the other is copied.
#pragma once

#include <functional>
#include <memory>

#include "gpu/runtime.h"

namespace fastserve::gpu {

/// Owns:    pinned memory, and as much of the card's, from the first use until release().
/// Threads: one caller; the work of filling is split over some threads of its own.
/// Errors:  kResourceExhausted when there is no room; copies that fail are kept by the runtime.
class Staging {
 public:
  static constexpr size_t kPiece = size_t{8} << 20;

  explicit Staging(Runtime& runtime, size_t piece = kPiece) : runtime_(runtime), piece_(piece) {}
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() { release(); }

  /// Copies bytes that may change as soon as this returns.
  Status copy(void* device, const void* host, size_t bytes);

  /// Takes `rows` rows of `row_bytes` through the card's side of the staging, some at a time,
  /// always a multiple of `unit` but for the last: write(r, to) puts row r on the host, from any
  /// thread; then take(first, count, staged) starts what reads them on the card.
  Status rows(size_t rows, size_t row_bytes, size_t unit,
              const std::function<void(size_t row, std::byte* to)>& write,
              const std::function<void(size_t first, size_t count, const void* staged)>& take);

  /// Waits for what is on its way and gives the memory back.
  void release();

 private:
  struct Piece {
    std::unique_ptr<DeviceBuffer> pinned;
    Memory staged;
    Ticket copied = 0;
  };
  /// The piece whose turn it is, with room for `bytes`, and free to be written.
  Result<Piece*> next(size_t bytes, bool on_card);

  Runtime& runtime_;
  const size_t piece_;
  Piece pieces_[2];
  size_t turn_ = 0;
};

}  // namespace fastserve::gpu
