#include "net/basp_guard.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

namespace fastserve {
namespace {

constexpr uint8_t kSelectThisConnection = 2;       // flag of a caller's second handshake
constexpr uint64_t kResponse = uint64_t{1} << 63;  // in a message's number
constexpr uint64_t kStream = uint64_t{1} << 61;    // in the number of a part of CAF's streams
constexpr size_t kNodeBytes = 32;                  // an atom that says which kind of id, and the id
constexpr size_t kMostTypeNames = 512;             // bytes of all names of one message's types

Error refuse(std::string what) {
  return {ErrorCode::kCorrupt, std::move(what), "",
          "the two sides run versions that do not speak with each other, or the peer is hostile"};
}

/// CAF's atoms: up to ten characters of six bits.
constexpr uint64_t atom(std::string_view text) {
  constexpr std::string_view kLetters =
      " 0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz";
  uint64_t value = 0xF;
  for (const char letter : text) value = value << 6 | kLetters.find(letter);
  return value;
}

/// Reads big-endian numbers and what BASP builds of them; what is not there yet reads as nothing.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::optional<uint64_t> number(size_t size) {
    if (size > bytes_.size() - at_) return std::nullopt;
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++) value = value << 8 | static_cast<uint8_t>(bytes_[at_++]);
    return value;
  }
  /// Seven bits a byte, the lowest first.
  std::optional<uint64_t> length() {
    uint64_t value = 0;
    for (int shift = 0; shift < 35; shift += 7) {
      const auto byte = number(1);
      if (!byte) return std::nullopt;
      value |= (*byte & 0x7F) << shift;
      if ((*byte & 0x80) == 0) return value;
    }
    return UINT64_MAX;  // longer than CAF writes any
  }
  std::optional<std::string_view> text(uint64_t size) {
    if (size > bytes_.size() - at_) return std::nullopt;
    const auto* begin = reinterpret_cast<const char*>(bytes_.data() + at_);
    at_ += size;
    return std::string_view(begin, size);
  }
  std::optional<BaspGuard::NodeId> node() {
    const auto kind = number(8);
    if (!kind || *kind != atom("default") || bytes_.size() - at_ < 24) return std::nullopt;
    BaspGuard::NodeId id;
    std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(at_), id.size(), id.begin());
    at_ += id.size();
    return id;
  }
  bool at_end() const { return at_ == bytes_.size(); }

 private:
  std::span<const std::byte> bytes_;
  size_t at_ = 0;
};

/// One plain value after another; false when they do not end where the bytes do.
bool holds_plain_values(Reader& reader, std::string_view names) {
  while (!names.empty()) {
    const std::string_view name = names.substr(0, names.find('+'));
    names.remove_prefix(std::min(names.size(), name.size() + 1));
    if (name == "@str") {
      const auto size = reader.length();
      if (!size || !reader.text(*size)) return false;
    } else if (name == "@strset" || name == "@strvec") {
      const auto count = reader.length();
      if (!count) return false;
      for (uint64_t i = 0; i < *count; i++) {
        const auto size = reader.length();
        if (!size || !reader.text(*size)) return false;
      }
    } else {
      const size_t size = name == "@atom" || name == "@u64" || name == "@i64" ? 8
                          : name == "@u32" || name == "@i32"                  ? 4
                          : name == "@u16" || name == "@i16"                  ? 2
                          : name == "@u8" || name == "@i8" || name == "bool"  ? 1
                                                                              : 0;
      if (size == 0 || !reader.number(size)) return false;
    }
  }
  return reader.at_end();
}

/// An error's context is itself a message, and may hold errors that hold messages: CAF recurses.
bool is_plain_error(Reader& reader) {
  if (!reader.number(1) || !reader.number(8)) return false;  // code, category
  const auto kind = reader.number(2);
  const auto size = reader.length();
  if (!kind || *kind != 0 || !size) return false;
  const auto names = reader.text(*size);
  if (!names || !names->starts_with("@<>")) return false;
  if (*names == "@<>") return reader.at_end();
  return names->substr(3).starts_with("+") && holds_plain_values(reader, names->substr(4));
}

}  // namespace

Status BaspGuard::pass(std::span<const std::byte> bytes, std::vector<std::byte>& through) {
  while (!bytes.empty()) {
    if (flowing_ > 0) {
      const size_t n = std::min<size_t>(flowing_, bytes.size());
      through.insert(through.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n));
      bytes = bytes.subspan(n);
      flowing_ -= static_cast<uint32_t>(n);
      continue;
    }
    const bool in_header = held_.size() < kHeaderBytes;
    const size_t whole = kHeaderBytes + (in_header ? 0 : length_);
    const size_t room = kHeaderBytes + options_.max_handshake - held_.size();
    const size_t n = std::min({bytes.size(), whole - held_.size(), room});
    held_.insert(held_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n));
    bytes = bytes.subspan(n);
    if (held_.size() < kHeaderBytes) return {};
    if (in_header) FS_TRY(check_header());
    FS_ASSIGN(const bool decided, check_payload());
    if (!decided) continue;
    through.insert(through.end(), held_.begin(), held_.end());
    flowing_ = length_ - static_cast<uint32_t>(held_.size() - kHeaderBytes);
    held_.clear();
  }
  return {};
}

Status BaspGuard::check_header() {
  Reader reader(held_);
  const uint64_t operation = *reader.number(1), padding = *reader.number(2);
  flags_ = static_cast<uint8_t>(*reader.number(1));
  length_ = static_cast<uint32_t>(*reader.number(4));
  data_ = *reader.number(8);
  source_ = *reader.number(8);
  destination_ = *reader.number(8);
  if (operation > static_cast<uint8_t>(Operation::kHeartbeat) || padding != 0)
    return refuse("sends what is no message of BASP");
  operation_ = static_cast<Operation>(operation);
  if (operation_ == Operation::kAnswererHandshake || operation_ == Operation::kCallerHandshake)
    return check_handshake();
  if (handshakes_ == 0) return refuse("speaks before it has introduced itself");
  if (operation_ == Operation::kRouted) return refuse("sends a message for another node");
  if (flags_ != 0) return refuse("calls an actor by a name");
  if (length_ > options_.max_payload)
    return refuse(fmt::format("sends a message of {} bytes, and {} are allowed", length_,
                              options_.max_payload));
  return check_actors();
}

Status BaspGuard::check_handshake() {
  const bool caller = options_.peer == Peer::kCaller;
  if (caller != (operation_ == Operation::kCallerHandshake))
    return refuse("introduces itself as the wrong side");
  // A caller does it twice: CAF repeats its handshake when it has seen ours.
  if (handshakes_ >= (caller ? 2 : 1)) return refuse("introduces itself again");
  const uint8_t flags = handshakes_ == 1 ? kSelectThisConnection : 0;
  if (flags_ != flags || source_ != 0 || destination_ != 0 || data_ != (caller ? 0 : kVersion))
    return refuse(caller ? "introduces itself in a way of its own"
                         : fmt::format("speaks version {} of BASP, and not {}", data_, kVersion));
  if (length_ > options_.max_handshake || (caller ? length_ != kNodeBytes : length_ < kNodeBytes))
    return refuse(fmt::format("introduces itself in {} bytes", length_));
  handshakes_++;
  return {};
}

/// Which of the header's numbers each operation uses.
Status BaspGuard::check_actors() const {
  const auto uses = [&](bool length, bool data, bool source, bool destination) {
    return (length_ != 0) == length && (data || data_ == 0) && (source || source_ == 0) &&
           (destination == (destination_ != 0));
  };
  bool sound = false;
  // CAF takes what is numbered as a part of a stream for one, whatever it holds, and crashes.
  if (operation_ == Operation::kDirect)
    sound = uses(true, true, true, true) && (data_ & kStream) == 0;
  if (operation_ == Operation::kMonitor)
    sound = uses(true, false, false, true) && length_ == 2 * kNodeBytes;
  if (operation_ == Operation::kDown)
    sound = uses(true, false, true, false) && source_ != 0 && length_ > 2 * kNodeBytes &&
            length_ <= options_.max_handshake;
  if (operation_ == Operation::kHeartbeat) sound = uses(false, false, false, false);
  if (sound) return {};
  return refuse(fmt::format("sends a header of operation {} that contradicts itself",
                            static_cast<int>(operation_)));
}

Result<bool> BaspGuard::check_payload() {
  if (operation_ == Operation::kDirect) return check_message();
  if (held_.size() < kHeaderBytes + length_) return false;
  if (operation_ == Operation::kHeartbeat) return true;
  Reader reader(std::span<const std::byte>(held_).subspan(kHeaderBytes));
  const std::optional<NodeId> source = reader.node();
  if (!source) return refuse("has an id of another kind");
  if (operation_ == Operation::kAnswererHandshake || operation_ == Operation::kCallerHandshake) {
    if (peer_ && *peer_ != *source) return refuse("is another node than before");
    if (*source == options_.self) return refuse("is this very node");
    if (!peer_ && options_.met) FS_TRY(options_.met(*source));
    peer_ = source;
    return true;
  }
  const std::optional<NodeId> destination = reader.node();
  if (*source != *peer_ || !destination || *destination != options_.self)
    return refuse("speaks for another node");
  if (operation_ == Operation::kDown && !is_plain_error(reader))
    return refuse("gives a reason for an actor's end that may not be read");
  return true;
}

/// Of a message: a list of actors that it came through, two bytes that are zero, the names of its
/// types, and the values.
Result<bool> BaspGuard::check_message() const {
  Reader reader(std::span<const std::byte>(held_).subspan(kHeaderBytes));
  const bool whole = held_.size() == kHeaderBytes + length_;
  const auto need_more = [&]() -> Result<bool> {
    if (whole) return refuse("sends a message that ends too soon");
    if (held_.size() >= kHeaderBytes + options_.max_handshake)
      return refuse("sends a message with more to check than is allowed");
    return false;
  };
  const auto came_through = reader.length();
  if (!came_through) return need_more();
  if (*came_through != 0) return refuse("sends a message by way of other actors");
  const auto kind = reader.number(2);
  if (!kind) return need_more();
  if (*kind != 0) return refuse("sends what is no message");
  const auto size = reader.length();
  if (!size) return need_more();
  if (*size > kMostTypeNames)
    return refuse(fmt::format("sends a message with {} bytes of names of types", *size));
  const auto names = reader.text(*size);
  if (!names) return need_more();
  if (*names == "@<>+@error") {
    // CAF ends an actor that is sent one without having asked.
    if ((data_ & kResponse) == 0) return refuse("sends an error that answers no request");
    if (!whole) return need_more();
    if (!is_plain_error(reader)) return refuse("sends an error that may not be read");
    return true;
  }
  // CAF takes this one for a link: the peer's end would be the end of the actor it names.
  if (*names == "@<>+@atom+@strong_actor_ptr") return refuse("links itself to an actor");
  FS_TRY(check_types(*names));
  return true;
}

Status BaspGuard::check_types(std::string_view names) const {
  static const std::set<std::string, std::less<>> kPlain = {"@i8",  "@i16",  "@i32", "@i64",
                                                            "@u8",  "@u16",  "@u32", "@u64",
                                                            "bool", "@atom", "@str", "@unit"};
  if (names == "@<>") return {};
  if (!names.starts_with("@<>+")) return refuse("sends what is no message");
  names.remove_prefix(4);
  while (true) {
    const std::string name(names.substr(0, names.find('+')));
    if (!kPlain.contains(name) && !options_.message_types.contains(name))
      return refuse(fmt::format("sends a {}, which no message here holds",
                                name.empty() ? "value without a type" : name));
    if (name.size() == names.size()) return {};
    names.remove_prefix(name.size() + 1);
  }
}

}  // namespace fastserve
