// The records of a TLS 1.3 connection after its handshake (RFC 8446, section 5). For net/ alone.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "net/openssl_handles.h"

namespace fastserve {

/// A secret of the handshake; nothing of it stays in memory.
class TrafficSecret {
 public:
  TrafficSecret() = default;
  explicit TrafficSecret(std::vector<unsigned char> bytes) : bytes_(std::move(bytes)) {}
  ~TrafficSecret();
  TrafficSecret(TrafficSecret&&) noexcept = default;
  TrafficSecret& operator=(TrafficSecret&&) noexcept;
  std::span<const unsigned char> bytes() const { return bytes_; }

 private:
  std::vector<unsigned char> bytes_;
};

enum class RecordType : uint8_t { kAlert = 21, kHandshake = 22, kData = 23 };

constexpr size_t kRecordHeader = 5;
constexpr size_t kMostOfRecord = 16 << 10;               ///< bytes of content
constexpr size_t kRecordExtra = kRecordHeader + 1 + 16;  ///< header, type, tag
constexpr size_t kMostReceived = kRecordHeader + kMostOfRecord + 256;

/// How records are sealed, and how a key follows from a secret.
struct RecordSuite {
  const EVP_CIPHER* cipher = nullptr;
  const EVP_MD* digest = nullptr;
};
/// kUnsupported for one that is none of TLS 1.3's usual three.
Result<RecordSuite> record_suite(const SSL_CIPHER* cipher);

/// Seals or opens the records of one direction, in their order.
///
/// Errors: kInternal when OpenSSL fails.
class RecordKey {
 public:
  enum class Use : uint8_t { kSeal, kOpen };
  /// `sequence`: how many records went under this secret before.
  static Result<RecordKey> create(RecordSuite suite, TrafficSecret secret, Use use,
                                  uint64_t sequence);

  /// Goes on to the key that follows this one (section 7.2).
  Status advance();
  uint64_t used() const { return sequence_; }  ///< records under the present key

  /// Writes a record of the content `pieces`, `bytes` together (at most kMostOfRecord) and
  /// kRecordExtra more.
  Status seal(RecordType type, std::span<const std::span<const std::byte>> pieces, size_t bytes,
              std::byte* out);
  struct Opened {
    RecordType type;
    size_t bytes;  ///< of content
  };
  /// Opens a whole record, header included. `into` has room for what it holds at most:
  /// kRecordExtra bytes fewer than the record. What lies there counts only if this succeeds.
  /// kCorrupt for a record that is not the next one of the peer's.
  Result<Opened> open(std::span<const std::byte> record, std::byte* into);

 private:
  using CipherHandle = std::unique_ptr<EVP_CIPHER_CTX, FreeWith<EVP_CIPHER_CTX_free>>;
  RecordKey() = default;
  Status take_up();
  std::array<unsigned char, 12> nonce();
  Result<std::vector<unsigned char>> expand(const char* label, size_t bytes) const;

  RecordSuite suite_;
  TrafficSecret secret_;
  Use use_ = Use::kSeal;
  CipherHandle context_;
  std::array<unsigned char, 12> iv_{};
  uint64_t sequence_ = 0;
};

}  // namespace fastserve
