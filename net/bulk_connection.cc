#include "net/bulk_connection.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>

#include "net/chunk_hash.h"

namespace fastserve {
namespace {

constexpr uint32_t kConfirmEvery = 4;  // chunks; sooner when nothing comes and nothing is to go

Nanoseconds now() { return std::chrono::steady_clock::now().time_since_epoch(); }

bool wants_read(Moved::Wants a, Moved::Wants b) {
  return a == Moved::Wants::kReadable || b == Moved::Wants::kReadable;
}
bool wants_write(Moved::Wants a, Moved::Wants b) {
  return a == Moved::Wants::kWritable || b == Moved::Wants::kWritable;
}

}  // namespace

void BulkConnection::stop() {
  stopped_ = true;
  wake_.notify();
}

Error BulkConnection::named(Error error) const {
  if (error.where.empty()) error.where = stream_->peer();
  return error;
}

Error BulkConnection::run() {
  last_heard_ = last_sent_ = now();
  while (!stopped_) {
    auto received = receive_some();
    if (!received.ok()) return named(std::move(received).error());
    auto sent = send_some(!*received);
    if (!sent.ok()) return named(std::move(sent).error());
    if (*received || *sent) continue;
    if (now() - last_heard_ > options_.silence)
      return named({ErrorCode::kUnavailable,
                    fmt::format("has said nothing for {:.1f} s",
                                std::chrono::duration<double>(options_.silence).count()),
                    "", "see whether the node runs and the network carries"});
    sleep();
  }
  return named({ErrorCode::kCancelled, "the lane was shut down", "", ""});
}

void BulkConnection::sleep() {
  const bool reading = wants_read(read_wants_, write_wants_);
  const bool writing = wants_write(read_wants_, write_wants_);
  pollfd waiting[2] = {
      {stream_->fd(), static_cast<short>((reading ? POLLIN : 0) | (writing ? POLLOUT : 0)), 0},
      {wake_.fd(), POLLIN, 0}};
  // Often enough to say that we live, and to notice that the peer does not.
  const auto nap = std::chrono::ceil<std::chrono::milliseconds>(options_.silence / 8);
  ::poll(waiting, 2, static_cast<int>(std::clamp<int64_t>(nap.count(), 1, 1000)));
  if (waiting[1].revents != 0) wake_.clear();
}

// Going out -----------------------------------------------------------------------------------

void BulkConnection::start_frame(const BulkFrame& frame) {
  out_header_ = frame.encode();
  out_.insert(out_.begin(), std::span<const std::byte>(out_header_));
}

void BulkConnection::confirm() {
  BulkFrame credit;
  credit.kind = BulkFrame::Kind::kCredit;
  credit.length = std::exchange(owed_, 0);
  start_frame(credit);
}

void BulkConnection::choose_next_frame(Nanoseconds at, bool nothing_came) {
  out_.clear();
  out_owners_.clear();
  out_at_ = 0;
  if (owed_ >= kConfirmEvery) return confirm();
  if (unconfirmed_ < options_.window) {
    if (auto chunk = outbox_.next(options_.chunk)) {
      unconfirmed_++;
      out_ = std::move(chunk->bytes);
      out_owners_ = std::move(chunk->owners);
      if (!stream_->detects_change()) chunk->frame.checksum = chunk_hash(out_);
      return start_frame(chunk->frame);
    }
  }
  // Each confirmation may wake the peer: not while a chunk is coming, which will be dealt with,
  // too.
  if (owed_ > 0 && nothing_came && in_header_bytes_ == 0) return confirm();
  if (at - last_sent_ > options_.silence / 4) start_frame({});
}

Result<bool> BulkConnection::send_some(bool nothing_came) {
  if (out_at_ == out_.size()) choose_next_frame(now(), nothing_came);
  write_wants_ = Moved::Wants::kNothing;
  if (out_at_ == out_.size()) return false;
  FS_ASSIGN(const Moved moved, stream_->write(std::span(out_).subspan(out_at_)));
  write_wants_ = moved.wants;
  if (moved.bytes == 0) return false;
  last_sent_ = now();
  size_t left = moved.bytes;
  while (left > 0) {
    std::span<const std::byte>& part = out_[out_at_];
    const size_t n = std::min(left, part.size());
    part = part.subspan(n);
    left -= n;
    if (part.empty()) out_at_++;
  }
  return true;
}

// Coming in -----------------------------------------------------------------------------------

Result<bool> BulkConnection::receive_some() {
  std::span<std::byte> into;
  const bool header = in_header_bytes_ < BulkFrame::kBytes;
  if (header) {
    into = std::span(in_header_).subspan(in_header_bytes_);
  } else if (in_parts_.empty()) {
    dropped_.resize(std::min<size_t>(in_left_, 64 << 10));
    into = dropped_;
  } else {
    into = in_parts_[in_part_].subspan(in_part_bytes_);
  }
  FS_ASSIGN(const Moved moved, stream_->read(into));
  if (moved.closed) return Error{ErrorCode::kUnavailable, "has closed the connection", "", ""};
  read_wants_ = moved.wants == Moved::Wants::kNothing ? Moved::Wants::kReadable : moved.wants;
  if (moved.bytes == 0) return false;
  last_heard_ = now();
  if (header) {
    in_header_bytes_ += moved.bytes;
    if (in_header_bytes_ == BulkFrame::kBytes) FS_TRY(take_frame());
    return true;
  }
  in_left_ -= static_cast<uint32_t>(moved.bytes);
  if (!in_parts_.empty()) {
    in_part_bytes_ += moved.bytes;
    if (in_part_bytes_ == in_parts_[in_part_].size()) {
      in_part_++;
      in_part_bytes_ = 0;
    }
  }
  if (in_left_ == 0) FS_TRY(end_chunk());
  return true;
}

Status BulkConnection::take_frame() {
  FS_ASSIGN(in_, BulkFrame::decode(in_header_));
  if (in_.kind == BulkFrame::Kind::kChunk) {
    FS_ASSIGN(in_parts_, inbox_.begin(in_));
    in_part_ = in_part_bytes_ = 0;
    in_left_ = in_.length;
    return in_left_ == 0 ? end_chunk() : Status();
  }
  in_header_bytes_ = 0;
  if (in_.kind == BulkFrame::Kind::kCredit) {
    if (in_.length == 0 || in_.length > unconfirmed_)
      return Error{ErrorCode::kCorrupt, "confirmed what was not sent", "", ""};
    unconfirmed_ -= in_.length;
  }
  return {};
}

Status BulkConnection::end_chunk() {
  owed_++;
  in_header_bytes_ = 0;
  const bool kept = !in_parts_.empty() || in_.length == 0;
  if (kept && !stream_->detects_change() && chunk_hash(in_parts_) != in_.checksum)
    return Error{ErrorCode::kCorrupt,
                 fmt::format("{} bytes arrived changed: the checksum does not hold", in_.length),
                 "", ""};
  inbox_.end(in_);
  return {};
}

}  // namespace fastserve
