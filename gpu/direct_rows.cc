#include "gpu/direct_rows.h"

#include <algorithm>
#include <bit>

namespace fastserve::gpu {

void DirectRows::copy(void* device, std::span<const std::byte> pinned) {
  if (!pinned.empty()) copied_ = runtime_.copy_in_async(device, pinned.data(), pinned.size());
}

/// Small pieces, as the ring's are, where large ones could take the room that weights need.
void DirectRows::choose_piece() {
  if (piece_ > 0) return;
  const size_t wanted = expected_ + expected_ / 8 + 2 * kPieces * most_;
  piece_ = runtime_.available() >= wanted ? most_ : std::max<size_t>(1, most_ / 8);
}

/// Little for a little model, and soon enough for a large.
Status DirectRows::reserve(size_t bytes) {
  if (room_ >= bytes) return {};
  wait_for_all();
  staged_ = Memory();
  room_ = 0;
  const size_t room = std::bit_ceil(bytes >= piece_ / 4 ? std::max(bytes, piece_) : bytes);
  FS_ASSIGN(staged_, Memory::allocate(runtime_, room * kPieces));
  runtime_.wait(runtime_.mark());  // it is cleared by then; copies beside would not wait for that
  room_ = room;
  return {};
}

Status DirectRows::rows(
    size_t rows, size_t row_bytes, size_t unit,
    const std::function<void(size_t first, size_t count, const Put& put)>& lay,
    const std::function<void(size_t first, size_t count, const void* staged)>& take) {
  if (rows == 0) return {};
  choose_piece();
  const size_t most = std::max<size_t>(1, piece_ / (unit * row_bytes)) * unit;
  FS_TRY(reserve(std::min(rows, most) * row_bytes));
  for (size_t first = 0; first < rows; first += most) {
    const size_t count = std::min(most, rows - first), at = turn_;
    auto* const staged = static_cast<std::byte*>(staged_.data()) + at * room_;
    runtime_.wait(done_[at]);
    std::span<const std::byte> from;
    size_t to = 0;
    const auto start = [&] { runtime_.copy_in_beside(staged + to, from.data(), from.size()); };
    lay(first, count, [&](size_t place, std::span<const std::byte> pinned) {
      if (place == to + from.size() && pinned.data() == from.data() + from.size()) {
        from = {from.data(), from.size() + pinned.size()};
        return;
      }
      start();
      from = pinned;
      to = place;
    });
    start();
    take(first, count, staged);
    done_[at] = runtime_.mark();
    turn_ = (at + 1) % kPieces;
  }
  return {};
}

void DirectRows::wait_for_all() {
  for (Ticket& done : done_) runtime_.wait(std::exchange(done, 0));
  runtime_.wait(std::exchange(copied_, 0));
}

void DirectRows::release() {
  wait_for_all();
  staged_ = Memory();
  room_ = piece_ = expected_ = turn_ = 0;
}

}  // namespace fastserve::gpu
