#include "net/sha256.h"

#include <openssl/sha.h>

#include "base/check.h"

namespace fastserve {

std::string sha256(std::string_view bytes) {
  unsigned char hash[SHA256_DIGEST_LENGTH];
  const auto* data = reinterpret_cast<const unsigned char*>(bytes.data());
  FS_CHECK(SHA256(data, bytes.size(), hash) != nullptr);
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (const unsigned char byte : hash) {
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

}  // namespace fastserve
