// What a peer may say to CAF.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>

#include "net/tunnel.h"

namespace fastserve {

/// Reads BASP, the protocol of CAF 0.17's remoting, ahead of CAF, and lets on what is safe.
///
/// CAF believes what it is sent: a packet of 32 bytes crashes it, and a message may name types that
/// allocate or recurse without bounds, end actors, or travel on to third nodes. So every header is
/// checked whole before CAF sees a byte of it, and of the payloads whatever decides how CAF reads
/// them: who speaks, and which types a message is made of. The rest goes on as it comes.
///
/// Threads:  one caller.
/// Promises: holds back at most `max_handshake` bytes and a header.
/// Errors:   kCorrupt, what the peer broke; or what `met` says. After an Error, only destroy it.
class BaspGuard final : public TunnelFilter {
 public:
  /// A CAF node's id as BASP writes it: process id and a host id, which is random here.
  using NodeId = std::array<std::byte, 24>;
  /// What the other end is: the side that called, or the side that answers.
  enum class Peer : uint8_t { kCaller, kAnswerer };

  struct Options {
    Peer peer = Peer::kCaller;
    uint32_t max_handshake = 4 << 10;  ///< also of an error that a message carries
    uint32_t max_payload = 8 << 20;
    /// Names of the types that messages may be made of, beside integers, bool, "@atom", "@str",
    /// "@unit" and, in answers, a single "@error". None may hold a vector of bytes, which CAF
    /// allocates before it looks whether the bytes are there: use strings.
    std::set<std::string> message_types;
    NodeId self{};  ///< our own id
    /// The peer has introduced itself; nothing of that has gone on yet. May be empty.
    std::function<Status(const NodeId&)> met;
  };

  static constexpr size_t kHeaderBytes = 32;
  static constexpr uint64_t kVersion = 3;  ///< of BASP

  explicit BaspGuard(Options options) : options_(std::move(options)) {}
  Status pass(std::span<const std::byte> bytes, std::vector<std::byte>& through) override;

 private:
  enum class Operation : uint8_t {
    kAnswererHandshake,
    kCallerHandshake,
    kDirect,
    kRouted,
    kMonitor,
    kDown,
    kHeartbeat
  };
  Status check_header();
  Status check_handshake();
  Status check_actors() const;
  /// True when what is held back may go on, false when more must come first.
  Result<bool> check_payload();
  Result<bool> check_message() const;
  Status check_types(std::string_view names) const;

  const Options options_;
  int handshakes_ = 0;
  std::optional<NodeId> peer_;
  std::vector<std::byte> held_;  // a header and what has come of its payload, while undecided
  uint32_t flowing_ = 0;         // bytes of a payload that go on unseen

  // Of the header at the front of held_, once whole.
  Operation operation_ = Operation::kHeartbeat;
  uint8_t flags_ = 0;
  uint32_t length_ = 0;
  uint64_t data_ = 0, source_ = 0, destination_ = 0;
};

}  // namespace fastserve
