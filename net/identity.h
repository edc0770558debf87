// Who a node is: certificates that a cluster's own authority signs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/result.h"

namespace fastserve {

/// What a certificate says of its holder.
struct NodeClaim {
  std::string cluster;             ///< id of the cluster
  std::string node;                ///< name, unique in the cluster
  std::vector<std::string> roles;  ///< "coordinator", "trainer", "parameter-server", ...
  int64_t expires_unix = 0;
  /// SHA-256 of its public key, 64 hex digits: tells two nodes that went by one name apart. Read
  /// from a certificate; signing takes the request's key instead.
  std::string key = {};
};

/// PEM texts. `key` is secret.
struct Identity {
  std::string certificate, key, authority;
};

/// A fresh key (ECDSA P-256) and the request to certify it; the key never leaves its node.
struct KeyAndRequest {
  std::string key, request;  ///< PEM
};
Result<KeyAndRequest> make_key_and_request();
/// NodeClaim::key of the certificate that this request would get; kInvalidArgument when it is none,
/// or not signed by its own key.
Result<std::string> key_of_request(const std::string& request_pem);

/// What the certificate says; kCorrupt when it is none of ours. Proves nothing: TLS does.
Result<NodeClaim> read_claim(const std::string& certificate_pem);

/// SHA-256 of a certificate, 64 hex digits: what a join token pins an authority by.
Result<std::string> fingerprint(const std::string& certificate_pem);

/// Signs the certificates of one cluster.
///
/// Owns:    the authority's key. Keep its folder (files of mode 600) on the coordinator's host.
/// Threads: one caller at a time.
class CertificateAuthority {
 public:
  /// A new authority, valid for ten years, whose cluster id is random.
  static Result<CertificateAuthority> create(int64_t now_unix);
  /// kNotFound, or kCorrupt when the files do not belong together.
  static Result<CertificateAuthority> load(const Path& folder);
  /// kAlreadyExists when there is an authority in the folder.
  Status save(const Path& folder) const;

  const std::string& cluster() const { return cluster_; }
  const std::string& certificate() const { return certificate_; }  ///< PEM

  /// Certifies the key of `request_pem` for the claim, from an hour ago (clocks differ) until
  /// claim.expires_unix. Of the request nothing but its key is believed; its signature must hold.
  /// kInvalidArgument for a request or claim that is not well-formed.
  Result<std::string> sign(const std::string& request_pem, const NodeClaim& claim,
                           int64_t now_unix) const;

 private:
  CertificateAuthority(std::string cluster, std::string certificate, std::string key)
      : cluster_(std::move(cluster)), certificate_(std::move(certificate)), key_(std::move(key)) {}

  std::string cluster_, certificate_, key_;
};

}  // namespace fastserve
