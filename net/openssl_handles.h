// Owners of OpenSSL's objects, and its errors as ours. For net/ alone.
#pragma once

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <memory>
#include <string>

#include "base/result.h"

namespace fastserve {

template <auto FREE>
struct FreeWith {
  template <class T>
  void operator()(T* object) const {
    FREE(object);
  }
};
using BioHandle = std::unique_ptr<BIO, FreeWith<BIO_free>>;
using KeyHandle = std::unique_ptr<EVP_PKEY, FreeWith<EVP_PKEY_free>>;
using CertificateHandle = std::unique_ptr<X509, FreeWith<X509_free>>;
using RequestHandle = std::unique_ptr<X509_REQ, FreeWith<X509_REQ_free>>;
using ContextHandle = std::unique_ptr<SSL_CTX, FreeWith<SSL_CTX_free>>;
using SslHandle = std::unique_ptr<SSL, FreeWith<SSL_free>>;

/// The oldest error in this thread's queue, which is emptied; `what` says what was tried.
Error openssl_error(ErrorCode code, const std::string& what);

Result<CertificateHandle> parse_certificate(const std::string& pem);
Result<KeyHandle> parse_key(const std::string& pem);
Result<std::string> certificate_text(X509* certificate);
/// SHA-256 of the certificate in hex; empty only when memory is out.
std::string certificate_hash(const X509* certificate);

}  // namespace fastserve
