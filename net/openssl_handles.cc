#include "net/openssl_handles.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/pem.h>

namespace fastserve {
namespace {

BioHandle reader_of(const std::string& text) {
  return BioHandle(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

}  // namespace

Error openssl_error(ErrorCode code, const std::string& what) {
  const unsigned long number = ERR_get_error();
  ERR_clear_error();
  const char* reason = number == 0 ? nullptr : ERR_reason_error_string(number);
  return {code, reason == nullptr ? what : fmt::format("{}: {}", what, reason), "", ""};
}

Result<CertificateHandle> parse_certificate(const std::string& pem) {
  const BioHandle bio = reader_of(pem);
  CertificateHandle certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
  if (certificate == nullptr) return openssl_error(ErrorCode::kCorrupt, "this is no certificate");
  return certificate;
}

Result<KeyHandle> parse_key(const std::string& pem) {
  const BioHandle bio = reader_of(pem);
  KeyHandle key(PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr));
  if (key == nullptr) return openssl_error(ErrorCode::kCorrupt, "this is no private key");
  return key;
}

Result<std::string> certificate_text(X509* certificate) {
  const BioHandle bio(BIO_new(BIO_s_mem()));
  if (bio == nullptr || PEM_write_bio_X509(bio.get(), certificate) != 1)
    return openssl_error(ErrorCode::kInternal, "the certificate cannot be written");
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<size_t>(size));
}

std::string certificate_hash(const X509* certificate) {
  unsigned char hash[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  std::string hex;
  if (X509_digest(certificate, EVP_sha256(), hash, &size) != 1) return hex;
  for (unsigned int i = 0; i < size; i++) hex += fmt::format("{:02x}", hash[i]);
  return hex;
}

}  // namespace fastserve
