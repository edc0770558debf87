#include "gpu/staging.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <thread>
#include <vector>

namespace fastserve::gpu {
namespace {

/// One core copies slower than a card's link does.
constexpr unsigned kMostThreads = 8;
constexpr size_t kWorthAThread = size_t{1} << 20;

/// Calls part(begin, end) over [0, n) on several threads.
void side_by_side(size_t n, size_t bytes, const std::function<void(size_t, size_t)>& part) {
  const size_t cores = std::clamp(std::thread::hardware_concurrency(), 1u, kMostThreads);
  const size_t threads = std::clamp<size_t>(bytes / kWorthAThread, 1, std::min(cores, n));
  std::vector<std::thread> others;
  for (size_t t = 1; t < threads; ++t)
    others.emplace_back([&, t] { part(n * t / threads, n * (t + 1) / threads); });
  part(0, n / threads);
  for (std::thread& other : others) other.join();
}

}  // namespace

Result<Staging::Piece*> Staging::next(size_t bytes, bool on_card) {
  Piece& piece = pieces_[turn_++ % 2];
  runtime_.wait(piece.copied);
  const size_t room = std::bit_ceil(bytes);  // little for a little model, and soon enough for a large
  if (!piece.pinned || piece.pinned->bytes() < room) {
    piece.pinned.reset();
    FS_ASSIGN(piece.pinned, runtime_.allocate_host(room));
  }
  if (on_card && piece.staged.bytes() < room) {
    piece.staged = Memory();
    FS_ASSIGN(piece.staged, Memory::allocate(runtime_, room));
  }
  return &piece;
}

Status Staging::copy(void* device, const void* host, size_t bytes) {
  auto* to = static_cast<std::byte*>(device);
  const auto* from = static_cast<const std::byte*>(host);
  for (size_t done = 0; done < bytes; done += piece_) {
    const size_t n = std::min(piece_, bytes - done);
    FS_ASSIGN(Piece* const piece, next(n, false));
    auto* const pinned = static_cast<std::byte*>(piece->pinned->data());
    side_by_side(n, n, [&](size_t begin, size_t end) {
      std::memcpy(pinned + begin, from + done + begin, end - begin);
    });
    piece->copied = runtime_.copy_in_async(to + done, pinned, n);
  }
  return {};
}

Status Staging::rows(
    size_t rows, size_t row_bytes, size_t unit,
    const std::function<void(size_t row, std::byte* to)>& write,
    const std::function<void(size_t first, size_t count, const void* staged)>& take) {
  const size_t most = std::max<size_t>(1, piece_ / (unit * row_bytes)) * unit;
  for (size_t first = 0; first < rows; first += most) {
    const size_t count = std::min(most, rows - first), bytes = count * row_bytes;
    FS_ASSIGN(Piece* const piece, next(bytes, true));
    auto* const pinned = static_cast<std::byte*>(piece->pinned->data());
    side_by_side(count, bytes, [&](size_t begin, size_t end) {
      for (size_t r = begin; r < end; ++r) write(first + r, pinned + r * row_bytes);
    });
    piece->copied = runtime_.copy_in_async(piece->staged.data(), pinned, bytes);
    take(first, count, piece->staged.data());
  }
  return {};
}

void Staging::release() {
  for (Piece& piece : pieces_) {
    runtime_.wait(piece.copied);
    piece = Piece();
  }
}

}  // namespace fastserve::gpu
