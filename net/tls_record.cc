#include "net/tls_record.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/kdf.h>

#include <algorithm>
#include <string_view>

namespace fastserve {
namespace {

constexpr int kTag = 16;

using KdfHandle = std::unique_ptr<EVP_KDF, FreeWith<EVP_KDF_free>>;
using KdfContextHandle = std::unique_ptr<EVP_KDF_CTX, FreeWith<EVP_KDF_CTX_free>>;

const EVP_CIPHER* cipher_of(int nid) {
  switch (nid) {
    case NID_aes_128_gcm:
      return EVP_aes_128_gcm();
    case NID_aes_256_gcm:
      return EVP_aes_256_gcm();
    case NID_chacha20_poly1305:
      return EVP_chacha20_poly1305();
    default:
      return nullptr;
  }
}

Error crypto_error() { return openssl_error(ErrorCode::kInternal, "a record's cipher failed"); }

unsigned char* raw(std::byte* bytes) { return reinterpret_cast<unsigned char*>(bytes); }
const unsigned char* raw(const std::byte* bytes) {
  return reinterpret_cast<const unsigned char*>(bytes);
}

}  // namespace

TrafficSecret::~TrafficSecret() { OPENSSL_cleanse(bytes_.data(), bytes_.size()); }

TrafficSecret& TrafficSecret::operator=(TrafficSecret&& other) noexcept {
  bytes_.swap(other.bytes_);
  return *this;
}

Result<RecordSuite> record_suite(const SSL_CIPHER* cipher) {
  RecordSuite suite;
  if (cipher != nullptr) suite.cipher = cipher_of(SSL_CIPHER_get_cipher_nid(cipher));
  if (cipher != nullptr) suite.digest = SSL_CIPHER_get_handshake_digest(cipher);
  if (suite.cipher != nullptr && suite.digest != nullptr) return suite;
  return Error{ErrorCode::kUnsupported, "chose a cipher that is not known here", "",
               "update the older side"};
}

Result<RecordKey> RecordKey::create(RecordSuite suite, TrafficSecret secret, Use use,
                                    uint64_t sequence) {
  if (secret.bytes().size() != static_cast<size_t>(EVP_MD_get_size(suite.digest)))
    return Error{ErrorCode::kInternal, "OpenSSL did not tell the secrets of a handshake", "", ""};
  RecordKey key;
  key.suite_ = suite;
  key.secret_ = std::move(secret);
  key.use_ = use;
  key.context_.reset(EVP_CIPHER_CTX_new());
  if (key.context_ == nullptr) return crypto_error();
  FS_TRY(key.take_up());
  key.sequence_ = sequence;
  return key;
}

/// HKDF-Expand-Label with no context (section 7.1).
Result<std::vector<unsigned char>> RecordKey::expand(const char* label, size_t bytes) const {
  const KdfHandle kdf(EVP_KDF_fetch(nullptr, OSSL_KDF_NAME_TLS1_3_KDF, nullptr));
  const KdfContextHandle context(kdf == nullptr ? nullptr : EVP_KDF_CTX_new(kdf.get()));
  if (context == nullptr) return crypto_error();
  const auto octets = [](const char* key, const void* data, size_t size) {
    return OSSL_PARAM_construct_octet_string(key, const_cast<void*>(data), size);
  };
  int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
  constexpr std::string_view prefix = "tls13 ";
  const OSSL_PARAM settings[] = {
      OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
      OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST,
                                       const_cast<char*>(EVP_MD_get0_name(suite_.digest)), 0),
      octets(OSSL_KDF_PARAM_KEY, secret_.bytes().data(), secret_.bytes().size()),
      octets(OSSL_KDF_PARAM_PREFIX, prefix.data(), prefix.size()),
      octets(OSSL_KDF_PARAM_LABEL, label, std::string_view(label).size()),
      OSSL_PARAM_construct_end()};
  std::vector<unsigned char> out(bytes);
  if (EVP_KDF_derive(context.get(), out.data(), out.size(), settings) != 1) return crypto_error();
  return out;
}

/// The key and nonce that belong to the secret (section 7.3).
Status RecordKey::take_up() {
  FS_ASSIGN(std::vector<unsigned char> key,
            expand("key", static_cast<size_t>(EVP_CIPHER_get_key_length(suite_.cipher))));
  FS_ASSIGN(const std::vector<unsigned char> iv, expand("iv", iv_.size()));
  std::copy(iv.begin(), iv.end(), iv_.begin());
  const int done = EVP_CipherInit_ex(context_.get(), suite_.cipher, nullptr, key.data(), nullptr,
                                     use_ == Use::kSeal ? 1 : 0);
  OPENSSL_cleanse(key.data(), key.size());
  if (done != 1) return crypto_error();
  sequence_ = 0;
  return {};
}

Status RecordKey::advance() {
  FS_ASSIGN(std::vector<unsigned char> next, expand("traffic upd", secret_.bytes().size()));
  secret_ = TrafficSecret(std::move(next));
  return take_up();
}

std::array<unsigned char, 12> RecordKey::nonce() {
  auto bytes = iv_;
  const uint64_t number = sequence_++;
  for (size_t i = 0; i < 8; i++)
    bytes[bytes.size() - 1 - i] ^= static_cast<unsigned char>(number >> (8 * i));
  return bytes;
}

Status RecordKey::seal(RecordType type, std::span<const std::span<const std::byte>> pieces,
                       size_t bytes, std::byte* out) {
  FS_CHECK(bytes <= kMostOfRecord && use_ == Use::kSeal);
  const size_t length = bytes + kRecordExtra - kRecordHeader;
  const unsigned char header[kRecordHeader] = {static_cast<unsigned char>(RecordType::kData), 3, 3,
                                               static_cast<unsigned char>(length >> 8),
                                               static_cast<unsigned char>(length)};
  unsigned char* at = std::copy_n(header, kRecordHeader, raw(out));
  EVP_CIPHER_CTX* const context = context_.get();
  const auto number = nonce();
  const auto inner = static_cast<unsigned char>(type);
  int n = 0;
  bool ok = EVP_CipherInit_ex(context, nullptr, nullptr, nullptr, number.data(), -1) == 1 &&
            EVP_CipherUpdate(context, nullptr, &n, header, kRecordHeader) == 1;
  for (const std::span<const std::byte> piece : pieces) {
    ok = ok && EVP_CipherUpdate(context, at, &n, raw(piece.data()), static_cast<int>(piece.size()));
    at += piece.size();
  }
  ok = ok && EVP_CipherUpdate(context, at, &n, &inner, 1) == 1 &&
       EVP_CipherFinal_ex(context, at + 1, &n) == 1 &&
       EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, kTag, at + 1) == 1;
  return ok ? Status() : crypto_error();
}

Result<RecordKey::Opened> RecordKey::open(std::span<const std::byte> record, std::byte* into) {
  FS_CHECK(record.size() >= kRecordExtra && use_ == Use::kOpen);
  const size_t content = record.size() - kRecordExtra;
  const unsigned char* at = raw(record.data());
  EVP_CIPHER_CTX* const context = context_.get();
  const auto number = nonce();
  unsigned char inner = 0;
  int n = 0;
  const bool ready =
      EVP_CipherInit_ex(context, nullptr, nullptr, nullptr, number.data(), -1) == 1 &&
      EVP_CipherUpdate(context, nullptr, &n, at, kRecordHeader) == 1 &&
      (content == 0 || EVP_CipherUpdate(context, raw(into), &n, at + kRecordHeader,
                                        static_cast<int>(content)) == 1) &&
      EVP_CipherUpdate(context, &inner, &n, at + kRecordHeader + content, 1) == 1 &&
      EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, kTag,
                          const_cast<unsigned char*>(at + record.size() - kTag)) == 1;
  if (!ready) return crypto_error();
  unsigned char nothing[kTag];
  if (EVP_CipherFinal_ex(context, nothing, &n) != 1)
    return Error{ErrorCode::kCorrupt, "sent a record that is not its own, or was changed", "", ""};
  // Zeros after the type are padding: the type is the last byte that is none.
  size_t bytes = content;
  while (inner == 0 && bytes > 0) inner = static_cast<unsigned char>(into[--bytes]);
  return Opened{static_cast<RecordType>(inner), bytes};
}

}  // namespace fastserve
