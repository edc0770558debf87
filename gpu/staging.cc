#include "gpu/staging.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace fastserve::gpu {
namespace {

/// What a thread takes at a time, some twenty microseconds' worth; and the least of a large load.
constexpr size_t kPart = size_t{256} << 10, kLeastPiece = size_t{1} << 20;

}  // namespace

/// If pinning takes half a millisecond a MiB, and a piece five microseconds beside its bytes, then
/// both cost least together with pieces of about this size.
void Staging::expect(size_t bytes) {
  piece_ = std::min(most_, std::bit_floor(std::max(bytes / 512, kLeastPiece)));
}

FillThreads& Staging::threads() {
  if (!threads_) threads_ = std::make_unique<FillThreads>(kAhead);
  return *threads_;
}

/// Room for pieces of `bytes`: little for a little model, and soon enough for a large.
Status Staging::reserve(size_t bytes, bool on_card) {
  if (room_ < bytes) {
    wait_for_all();
    give_back_pinned();
    staged_ = Memory();
    room_ = 0;
    const size_t room = std::bit_ceil(bytes >= piece_ / 4 ? std::max(bytes, piece_) : bytes);
    if (shelf_) pinned_ = shelf_->take(room * kPieces);
    if (!pinned_) {
      FS_ASSIGN(pinned_, runtime_.allocate_host(room * kPieces));
    }
    room_ = room;
  }
  if (on_card && staged_.bytes() == 0) {
    FS_ASSIGN(staged_, Memory::allocate(runtime_, room_ * kPieces));
    runtime_.wait(runtime_.mark());  // it is cleared by then; copies beside would not wait for that
  }
  return {};
}

Status Staging::run(const Job& job, bool on_card) {
  FS_TRY(reserve(std::max(job.bytes, job.last), on_card));
  auto* const pinned = static_cast<std::byte*>(pinned_->data());
  auto* const staged = static_cast<std::byte*>(staged_.data());
  const size_t parts = (job.bytes + kPart - 1) / kPart, first = turn_;
  const auto place = [&](size_t piece) { return (first + piece) % kPieces; };
  threads().begin(parts, [&](size_t piece, size_t part) {
    job.fill(piece, part, parts, pinned + place(piece) * room_);
  });
  for (size_t piece = 0, granted = 0; piece < job.pieces; ++piece) {
    for (; granted < std::min(job.pieces, piece + kAhead); ++granted) {
      runtime_.wait(done_[place(granted)]);
      threads().grant();
    }
    threads().finish();
    const size_t at = place(piece);
    done_[at] = job.start(piece, pinned + at * room_, on_card ? staged + at * room_ : nullptr);
  }
  turn_ = place(job.pieces);
  return {};
}

Status Staging::copy(void* device, const void* host, size_t bytes) {
  if (bytes == 0) return {};
  auto* const to = static_cast<std::byte*>(device);
  const auto* const from = static_cast<const std::byte*>(host);
  const size_t pieces = (bytes + piece_ - 1) / piece_, last = bytes - (pieces - 1) * piece_;
  const auto size = [=, this](size_t piece) { return piece + 1 < pieces ? piece_ : last; };
  return run({pieces, size(0), last,
              [&](size_t piece, size_t part, size_t parts, std::byte* pinned) {
                const size_t begin = size(piece) * part / parts;
                const size_t end = size(piece) * (part + 1) / parts;
                std::memcpy(pinned + begin, from + piece * piece_ + begin, end - begin);
              },
              [&](size_t piece, std::byte* pinned, std::byte*) {
                return runtime_.copy_in_async(to + piece * piece_, pinned, size(piece));
              }},
             false);
}

Status Staging::rows(
    size_t rows, size_t row_bytes, size_t unit, const std::function<void(const Rows& rows)>& write,
    const std::function<void(size_t first, size_t count, const void* staged)>& take) {
  if (rows == 0) return {};
  const size_t most = std::max<size_t>(1, piece_ / (unit * row_bytes)) * unit;
  const size_t pieces = (rows + most - 1) / most, last = rows - (pieces - 1) * most;
  const auto size = [=](size_t piece) { return piece + 1 < pieces ? most : last; };
  return run({pieces, size(0) * row_bytes, last * row_bytes,
              [&](size_t piece, size_t part, size_t parts, std::byte* pinned) {
                const size_t all = size(piece), of = piece * most;
                const size_t begin = all * part / parts, end = all * (part + 1) / parts;
                if (begin < end) write({of + begin, end - begin, of, all, pinned});
              },
              [&](size_t piece, std::byte* pinned, std::byte* staged) {
                runtime_.copy_in_beside(staged, pinned, size(piece) * row_bytes);
                take(piece * most, size(piece), staged);
                return runtime_.mark();
              }},
             true);
}

void Staging::side_by_side(size_t n, const std::function<void(size_t i)>& part) {
  if (n == 0) return;
  threads().begin(n, [&](size_t, size_t i) { part(i); });
  threads().grant();
  threads().finish();
}

void Staging::wait_for_all() {
  for (Ticket& done : done_) runtime_.wait(std::exchange(done, 0));
}

void Staging::give_back_pinned() {
  if (shelf_) shelf_->put(std::move(pinned_));
  pinned_.reset();
}

void Staging::release() {
  wait_for_all();
  threads_.reset();
  give_back_pinned();
  staged_ = Memory();
  room_ = 0;
  piece_ = most_;
}

}  // namespace fastserve::gpu
