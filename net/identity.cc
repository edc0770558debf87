#include "net/identity.h"

#include <fmt/format.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <algorithm>
#include <sstream>

#include "net/openssl_handles.h"
#include "net/sha256.h"

namespace fastserve {
namespace {

constexpr int64_t kHour = 3600, kTenYears = 3650 * 24 * kHour;
constexpr const char* kCertificateFile = "authority.pem";
constexpr const char* kKeyFile = "authority-key.pem";
constexpr const char* kUriPrefix = "fastserve:";

using BigNumberHandle = std::unique_ptr<BIGNUM, FreeWith<BN_free>>;
using ExtensionHandle = std::unique_ptr<X509_EXTENSION, FreeWith<X509_EXTENSION_free>>;
using NamesHandle = std::unique_ptr<GENERAL_NAMES, FreeWith<GENERAL_NAMES_free>>;

Error failed(const std::string& what) { return openssl_error(ErrorCode::kInternal, what); }

Result<std::string> key_text(EVP_PKEY* key) {
  const BioHandle bio(BIO_new(BIO_s_mem()));
  if (bio == nullptr ||
      PEM_write_bio_PKCS8PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1)
    return failed("the key cannot be written");
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<size_t>(size));
}

/// Names stand in certificates and on command lines: letters, digits, '-', '_' and '.'.
bool is_name(const std::string& text) {
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  });
}

/// "fastserve:CLUSTER/NODE/ROLE+ROLE"
std::string claim_text(const NodeClaim& claim) {
  return fmt::format("{}{}/{}/{}", kUriPrefix, claim.cluster, claim.node,
                     fmt::join(claim.roles, "+"));
}

Status check_claim(const NodeClaim& claim) {
  if (is_name(claim.cluster) && is_name(claim.node) &&
      std::all_of(claim.roles.begin(), claim.roles.end(), is_name))
    return {};
  return Error{ErrorCode::kInvalidArgument, "is no name", claim.node,
               "names are up to 64 letters, digits, dots, dashes and underscores"};
}

Status add_extension(X509* certificate, X509* issuer, int id, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const ExtensionHandle extension(X509V3_EXT_conf_nid(nullptr, &context, id, value.c_str()));
  if (extension == nullptr || X509_add_ext(certificate, extension.get(), -1) != 1)
    return failed("a certificate's extension cannot be set");
  return {};
}

struct Terms {
  std::string name;
  int64_t from_unix = 0, until_unix = 0;
};

/// A certificate for `key` without extensions or signature.
Result<CertificateHandle> blank_certificate(EVP_PKEY* key, const Terms& terms) {
  CertificateHandle certificate(X509_new());
  const BigNumberHandle serial(BN_new());
  const time_t from = terms.from_unix, until = terms.until_unix;
  if (certificate == nullptr || serial == nullptr ||
      X509_set_version(certificate.get(), X509_VERSION_3) != 1 ||
      BN_rand(serial.get(), 127, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) != 1 ||
      BN_to_ASN1_INTEGER(serial.get(), X509_get_serialNumber(certificate.get())) == nullptr ||
      ASN1_TIME_set(X509_getm_notBefore(certificate.get()), from) == nullptr ||
      ASN1_TIME_set(X509_getm_notAfter(certificate.get()), until) == nullptr ||
      X509_set_pubkey(certificate.get(), key) != 1 ||
      X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate.get()), "CN", MBSTRING_UTF8,
                                 reinterpret_cast<const unsigned char*>(terms.name.c_str()), -1, -1,
                                 0) != 1)
    return failed("a certificate cannot be made");
  return certificate;
}

Status sign_with(X509* certificate, EVP_PKEY* key) {
  if (X509_sign(certificate, key, EVP_sha256()) > 0) return {};
  return failed("a certificate cannot be signed");
}

Result<std::string> random_id() {
  unsigned char bytes[8];
  if (RAND_bytes(bytes, sizeof bytes) != 1) return failed("no random numbers can be had");
  std::string id;
  for (const unsigned char byte : bytes) id += fmt::format("{:02x}", byte);
  return id;
}

std::string common_name(const X509* certificate) {
  char text[128] = "";
  X509_NAME_get_text_by_NID(X509_get_subject_name(certificate), NID_commonName, text, sizeof text);
  return text;
}

/// The one URI among the certificate's names that is ours; empty when there is none.
std::string claim_uri(const X509* certificate) {
  const NamesHandle names(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  for (int i = 0; names != nullptr && i < sk_GENERAL_NAME_num(names.get()); i++) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    const ASN1_IA5STRING* uri = name->d.uniformResourceIdentifier;
    std::string text(reinterpret_cast<const char*>(ASN1_STRING_get0_data(uri)),
                     static_cast<size_t>(ASN1_STRING_length(uri)));
    if (text.starts_with(kUriPrefix)) return text.substr(std::string(kUriPrefix).size());
  }
  return {};
}

/// SHA-256 of the key as certificates carry it; empty only when memory is out.
std::string key_hash(const EVP_PKEY* key) {
  unsigned char* der = nullptr;
  const int size = i2d_PUBKEY(key, &der);
  if (size <= 0) return {};
  std::string hash = sha256({reinterpret_cast<const char*>(der), static_cast<size_t>(size)});
  OPENSSL_free(der);
  return hash;
}

/// A request that its own key has signed.
Result<RequestHandle> parse_request(const std::string& pem) {
  const BioHandle bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  RequestHandle request(PEM_read_bio_X509_REQ(bio.get(), nullptr, nullptr, nullptr));
  EVP_PKEY* key = request == nullptr ? nullptr : X509_REQ_get0_pubkey(request.get());
  if (key == nullptr || X509_REQ_verify(request.get(), key) != 1)
    return openssl_error(ErrorCode::kInvalidArgument, "this is no request for a certificate");
  return request;
}

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, at);) parts.push_back(part);
  return parts;
}

}  // namespace

Result<KeyAndRequest> make_key_and_request() {
  const KeyHandle key(EVP_EC_gen("P-256"));
  const RequestHandle request(X509_REQ_new());
  if (key == nullptr || request == nullptr || X509_REQ_set_pubkey(request.get(), key.get()) != 1 ||
      X509_REQ_sign(request.get(), key.get(), EVP_sha256()) <= 0)
    return failed("a key cannot be made");
  const BioHandle bio(BIO_new(BIO_s_mem()));
  if (bio == nullptr || PEM_write_bio_X509_REQ(bio.get(), request.get()) != 1)
    return failed("a request cannot be written");
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  KeyAndRequest made;
  FS_ASSIGN(made.key, key_text(key.get()));
  made.request.assign(data, static_cast<size_t>(size));
  return made;
}

Result<NodeClaim> read_claim(const std::string& certificate_pem) {
  FS_ASSIGN(const CertificateHandle certificate, parse_certificate(certificate_pem));
  const std::vector<std::string> parts = split(claim_uri(certificate.get()), '/');
  NodeClaim claim;
  std::tm until{};
  if (parts.size() < 2 || parts.size() > 3 ||
      ASN1_TIME_to_tm(X509_get0_notAfter(certificate.get()), &until) != 1)
    return Error{ErrorCode::kCorrupt, "this certificate names no node of a cluster", "", ""};
  claim.cluster = parts[0];
  claim.node = parts[1];
  if (parts.size() == 3) claim.roles = split(parts[2], '+');
  claim.expires_unix = ::timegm(&until);
  claim.key = key_hash(X509_get0_pubkey(certificate.get()));
  FS_TRY(check_claim(claim));
  return claim;
}

Result<std::string> key_of_request(const std::string& request_pem) {
  FS_ASSIGN(const RequestHandle request, parse_request(request_pem));
  return key_hash(X509_REQ_get0_pubkey(request.get()));
}

Result<std::string> fingerprint(const std::string& certificate_pem) {
  FS_ASSIGN(const CertificateHandle certificate, parse_certificate(certificate_pem));
  return certificate_hash(certificate.get());
}

Result<CertificateAuthority> CertificateAuthority::create(int64_t now_unix) {
  FS_ASSIGN(const std::string cluster, random_id());
  const KeyHandle key(EVP_EC_gen("P-256"));
  if (key == nullptr) return failed("a key cannot be made");
  FS_ASSIGN(const CertificateHandle certificate,
            blank_certificate(key.get(), {cluster, now_unix - kHour, now_unix + kTenYears}));
  X509* raw = certificate.get();
  if (X509_set_issuer_name(raw, X509_get_subject_name(raw)) != 1)
    return failed("a certificate's issuer cannot be set");
  FS_TRY(add_extension(raw, raw, NID_basic_constraints, "critical,CA:TRUE,pathlen:0"));
  FS_TRY(add_extension(raw, raw, NID_key_usage, "critical,keyCertSign"));
  FS_TRY(add_extension(raw, raw, NID_subject_key_identifier, "hash"));
  FS_TRY(sign_with(raw, key.get()));
  FS_ASSIGN(std::string certificate_pem, certificate_text(raw));
  FS_ASSIGN(std::string key_pem, key_text(key.get()));
  return CertificateAuthority(cluster, std::move(certificate_pem), std::move(key_pem));
}

Result<CertificateAuthority> CertificateAuthority::load(const Path& folder) {
  constexpr uint64_t kLimit = 64 << 10;
  FS_ASSIGN(std::string certificate_pem, read_file(folder / kCertificateFile, kLimit));
  FS_ASSIGN(std::string key_pem, read_file(folder / kKeyFile, kLimit));
  auto certificate = parse_certificate(certificate_pem);
  auto key = parse_key(key_pem);
  if (!certificate.ok() || !key.ok() || X509_check_private_key(certificate->get(), key->get()) != 1)
    return Error{ErrorCode::kCorrupt, "the authority's certificate and key do not belong together",
                 folder.string(), "restore both from the backup of this folder"};
  std::string cluster = common_name(certificate->get());
  return CertificateAuthority(std::move(cluster), std::move(certificate_pem), std::move(key_pem));
}

Status CertificateAuthority::save(const Path& folder) const {
  FS_TRY(make_directories(folder));
  if (std::filesystem::exists(folder / kKeyFile))
    return Error{ErrorCode::kAlreadyExists, "holds the authority of a cluster", folder.string(),
                 "use another folder; removing this one ends its cluster"};
  // The key is nobody else's to read, not even while it is being written.
  const mode_t before = ::umask(0077);
  Status saved = write_file_atomically(folder / kKeyFile, key_);
  if (saved.ok()) saved = write_file_atomically(folder / kCertificateFile, certificate_);
  ::umask(before);
  return saved;
}

Result<std::string> CertificateAuthority::sign(const std::string& request_pem,
                                               const NodeClaim& claim, int64_t now_unix) const {
  FS_TRY(check_claim(claim));
  FS_ASSIGN(const RequestHandle request, parse_request(request_pem));
  EVP_PKEY* key = X509_REQ_get0_pubkey(request.get());
  FS_ASSIGN(const CertificateHandle authority, parse_certificate(certificate_));
  FS_ASSIGN(const KeyHandle authority_key, parse_key(key_));
  FS_ASSIGN(const CertificateHandle certificate,
            blank_certificate(key, {claim.node, now_unix - kHour, claim.expires_unix}));
  X509* raw = certificate.get();
  if (X509_set_issuer_name(raw, X509_get_subject_name(authority.get())) != 1)
    return failed("a certificate's issuer cannot be set");
  FS_TRY(add_extension(raw, authority.get(), NID_basic_constraints, "critical,CA:FALSE"));
  FS_TRY(add_extension(raw, authority.get(), NID_key_usage, "critical,digitalSignature"));
  FS_TRY(add_extension(raw, authority.get(), NID_ext_key_usage, "serverAuth,clientAuth"));
  FS_TRY(add_extension(raw, authority.get(), NID_authority_key_identifier, "keyid"));
  FS_TRY(add_extension(raw, authority.get(), NID_subject_alt_name, "URI:" + claim_text(claim)));
  FS_TRY(sign_with(raw, authority_key.get()));
  return certificate_text(raw);
}

}  // namespace fastserve
