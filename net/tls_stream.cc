#include "net/tls_stream.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace fastserve {
namespace {

/// Of each direction: a lane's chunk and what its records add go out in one send. Pages that are
/// never needed stay untouched.
constexpr size_t kRoom = 320 << 10;
constexpr size_t kOfItsOwn = 1 << 10;  // a part this long begins a record, to be opened in place

constexpr std::byte kCloseNotify{0}, kNewSessionTicket{4}, kKeyUpdate{24}, kUpdateRequested{1};

/// Bytes of whole and broken records.
struct Sealed {
  std::unique_ptr<std::byte[]> bytes = std::make_unique_for_overwrite<std::byte[]>(kRoom);
  size_t begin = 0, end = 0;

  std::span<const std::byte> waiting() const { return {bytes.get() + begin, end - begin}; }
  std::span<std::byte> room() { return {bytes.get() + end, kRoom - end}; }
  bool empty() const { return begin == end; }
  void take(size_t n) {
    begin += n;
    if (begin == end) begin = end = 0;
  }
  /// Makes room for the rest of a record.
  void move_to_front() {
    std::memmove(bytes.get(), bytes.get() + begin, end - begin);
    end -= begin;
    begin = 0;
  }
};

class TlsStream final : public Stream {
 public:
  TlsStream(Socket socket, RecordKey sealing, RecordKey opening, std::string peer,
            uint64_t records_per_key)
      : socket_(std::move(socket)),
        sealing_(std::move(sealing)),
        opening_(std::move(opening)),
        peer_(std::move(peer)),
        records_per_key_(records_per_key) {}

  Result<Moved> read(std::span<std::byte> into) override {
    size_t got = 0;
    while (got < into.size() && !ended_) {
      const size_t left = take_left_over(into.subspan(got));
      got += left;
      if (left > 0) continue;
      FS_ASSIGN(const bool opened, open_next(into.subspan(got), got));
      if (opened) continue;
      if (got > 0) break;
      FS_ASSIGN(const Moved received, receive());
      if (received.bytes == 0) return received;
    }
    return Moved{.bytes = got, .closed = ended_ && got == 0};
  }

  Result<Moved> write(std::span<const std::span<const std::byte>> parts) override {
    if (ended_) return broken("has closed the connection");
    if (out_.empty()) FS_TRY(seal_some(parts));
    FS_ASSIGN(const bool gone, send());
    if (!gone) return Moved{.wants = Moved::Wants::kWritable};
    return Moved{.bytes = std::exchange(promised_, 0)};
  }

  bool detects_change() const override { return true; }
  void shut_down() override {
    if (ended_ || broken_ || !out_.empty()) return;
    const std::byte alert[] = {std::byte{1}, kCloseNotify};
    if (seal(RecordType::kAlert, std::span(alert)).ok()) (void)send().ok();
  }
  int fd() const override { return socket_.get(); }
  const std::string& peer() const override { return peer_; }

 private:
  Error broken(std::string what) {
    broken_ = true;
    return Error{ErrorCode::kUnavailable, std::move(what), peer_, ""};
  }

  // Going out ---------------------------------------------------------------------------------

  Status seal(RecordType type, std::span<const std::byte> content) {
    FS_TRY(sealing_.seal(type, {&content, 1}, content.size(), out_.room().data()));
    out_.end += content.size() + kRecordExtra;
    return {};
  }

  Status update_key() {
    const std::byte message[] = {kKeyUpdate, {}, {}, std::byte{1}, {}};
    FS_TRY(seal(RecordType::kHandshake, std::span(message)));
    update_asked_ = false;
    return sealing_.advance();
  }

  /// As many records of the parts as there is room for.
  Status seal_some(std::span<const std::span<const std::byte>> parts) {
    size_t at = 0;  // bytes of parts.front() that are sealed
    while (out_.room().size() >= 2 * kMostReceived) {
      size_t bytes = 0;
      pieces_.clear();
      while (!parts.empty() && bytes < kMostOfRecord) {
        const auto left = parts.front().subspan(at);
        if (bytes > 0 && left.size() >= kOfItsOwn) break;
        const size_t n = std::min(left.size(), kMostOfRecord - bytes);
        if (n > 0) pieces_.push_back(left.first(n));
        bytes += n;
        at += n;
        if (at < parts.front().size()) continue;
        parts = parts.subspan(1);
        at = 0;
      }
      if (bytes == 0) break;
      if (update_asked_ || sealing_.used() >= records_per_key_) FS_TRY(update_key());
      FS_TRY(sealing_.seal(RecordType::kData, pieces_, bytes, out_.room().data()));
      out_.end += bytes + kRecordExtra;
      promised_ += bytes;
    }
    return {};
  }

  /// True when all that is sealed has gone.
  Result<bool> send() {
    while (!out_.empty()) {
      const auto bytes = out_.waiting();
      const ssize_t sent =
          ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0 && errno == EAGAIN) return false;
      if (sent < 0) return broken(fmt::format("the connection broke: {}", std::strerror(errno)));
      out_.take(static_cast<size_t>(sent));
    }
    return true;
  }

  // Coming in ---------------------------------------------------------------------------------

  /// Of a record that was longer than what was asked for.
  size_t take_left_over(std::span<std::byte> into) {
    const size_t n = std::min(into.size(), left_over_.size());
    std::copy_n(left_over_.begin(), n, into.begin());
    left_over_ = left_over_.subspan(n);
    return n;
  }

  Result<Moved> receive() {
    if (in_.room().size() < kMostReceived) in_.move_to_front();
    const auto room = in_.room();
    const ssize_t got = ::recv(socket_.get(), room.data(), room.size(), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
      return Moved{.wants = Moved::Wants::kReadable};
    if (got < 0) return broken(fmt::format("the connection broke: {}", std::strerror(errno)));
    if (got == 0) return broken("the connection broke: it ended without a word");
    in_.end += static_cast<size_t>(got);
    return Moved{.bytes = static_cast<size_t>(got)};
  }

  /// Bytes of the record that comes next; 0 while its header is not there.
  Result<size_t> next_size() {
    const auto bytes = in_.waiting();
    if (bytes.size() < kRecordHeader) return size_t{0};
    const size_t size =
        kRecordHeader + std::to_integer<size_t>(bytes[3]) * 256 + std::to_integer<size_t>(bytes[4]);
    if (bytes[0] == static_cast<std::byte>(RecordType::kData) && size >= kRecordExtra &&
        size <= kMostReceived)
      return size;
    return corrupt("sent what is no record of TLS");
  }

  Error corrupt(std::string what) {
    broken_ = true;
    return Error{ErrorCode::kCorrupt, std::move(what), peer_, ""};
  }

  /// Opens one record, into its place when it fits there; false when none is whole.
  Result<bool> open_next(std::span<std::byte> into, size_t& got) {
    FS_ASSIGN(const size_t size, next_size());
    if (size == 0 || in_.waiting().size() < size) return false;
    const bool fits = size - kRecordExtra <= into.size();
    if (!fits && spare_.empty()) spare_.resize(kMostReceived);
    std::byte* const place = fits ? into.data() : spare_.data();
    auto opened = opening_.open(in_.waiting().first(size), place);
    if (!opened.ok()) return corrupt(opened.error().what);
    in_.take(size);
    const std::span<const std::byte> content(place, opened->bytes);
    if (opened->type != RecordType::kData) {
      FS_TRY(heed(opened->type, content));
    } else if (fits) {
      got += content.size();
    } else {
      left_over_ = content;
    }
    return true;
  }

  /// What the peer says beside its data.
  Status heed(RecordType type, std::span<const std::byte> content) {
    if (type == RecordType::kAlert && content.size() == 2) {
      ended_ = true;
      if (content[1] == kCloseNotify) return {};
      return broken(fmt::format("the connection broke: the peer says: {}",
                                SSL_alert_desc_string_long(std::to_integer<int>(content[1]))));
    }
    if (type == RecordType::kHandshake && content.size() == 5 && content[0] == kKeyUpdate) {
      update_asked_ = update_asked_ || content[4] == kUpdateRequested;
      return opening_.advance();
    }
    if (type == RecordType::kHandshake && !content.empty() && content[0] == kNewSessionTicket)
      return {};
    return corrupt("sent a record of TLS that is not expected after the handshake");
  }

  Socket socket_;
  RecordKey sealing_, opening_;
  const std::string peer_;
  const uint64_t records_per_key_;

  Sealed out_;
  size_t promised_ = 0;  // bytes of the caller's that out_ holds
  std::vector<std::span<const std::byte>> pieces_;
  bool update_asked_ = false;

  Sealed in_;
  std::vector<std::byte> spare_;
  std::span<const std::byte> left_over_;  // of spare_
  bool ended_ = false, broken_ = false;
};

}  // namespace

std::unique_ptr<Stream> tls_stream(Socket socket, RecordKey sealing, RecordKey opening,
                                   std::string peer, uint64_t records_per_key) {
  return std::make_unique<TlsStream>(std::move(socket), std::move(sealing), std::move(opening),
                                     std::move(peer), records_per_key);
}

}  // namespace fastserve
