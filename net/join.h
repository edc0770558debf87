// How a node becomes one of a cluster: a token and a request go in, a certificate comes out.
#pragma once

#include <functional>
#include <string>

#include "net/join_documents.h"
#include "net/tls.h"

namespace fastserve {

/// What TLS calls the protocol; it is spoken without a client certificate.
inline constexpr const char* kJoinProtocol = "fastserve-join/1";

/// Where to join, and how to know that it is there.
struct JoinTarget {
  std::string host;
  int port = 0;
  std::string authority;  ///< fingerprint from the token
};

/// Joins with `key`, whose request goes out; `ask.request` is filled in. Keep the key before, and
/// join with the same one again when no answer came: the coordinator then knows who it is.
///
/// The token is sent to nobody but the cluster's coordinator: not to another cluster, nor to a node
/// of this one.
/// Errors: kInvalidArgument, kAlreadyExists and others as the coordinator says; kUnsupported when
///         the two versions are too far apart; kUnavailable and kDeadlineExceeded: try again;
///         kCorrupt for an answer that does not fit the question.
Result<Identity> join_cluster(const JoinTarget& target, JoinAsk ask, const KeyAndRequest& key,
                              Nanoseconds timeout);

/// The same over a connection that is there.
Result<Identity> join_over(TlsConnection connection, const std::string& authority, JoinAsk ask,
                           const KeyAndRequest& key, Nanoseconds timeout);

/// Serves one connection of kJoinProtocol: asks `decide`, and tells the peer. Returns the error
/// that the peer was told, or that kept it from being told. Blocks for `timeout` at most, besides
/// `decide`.
Status serve_join(TlsConnection connection,
                  const std::function<Result<JoinGrant>(const JoinAsk&)>& decide,
                  Nanoseconds timeout);

}  // namespace fastserve
