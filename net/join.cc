#include "net/join.h"

#include <fmt/format.h>

#include <algorithm>

#include "net/document_stream.h"

namespace fastserve {
namespace {

Error with_peer(Error error, const std::string& peer) {
  if (error.where.empty()) error.where = peer;
  return error;
}

/// Any node of the cluster could answer at that address; a token is for the coordinator alone.
Status check_is_coordinator(const TlsConnection& connection) {
  const auto& roles = connection.claim->roles;
  if (std::find(roles.begin(), roles.end(), "coordinator") != roles.end()) return {};
  return Error{
      ErrorCode::kInvalidArgument,
      fmt::format("{} is a node of the cluster, and not its coordinator", connection.claim->node),
      connection.stream->peer(), "join at the coordinator's address"};
}

/// What came back must be for us: the authority that the token names, our name, our key.
Status check_grant(const JoinGrant& grant, const std::string& authority, const std::string& name,
                   const KeyAndRequest& key) {
  const auto bad = [](std::string what) {
    return Error{ErrorCode::kCorrupt, std::move(what), "the answer to joining",
                 "the coordinator may be of another version: update the older side"};
  };
  const auto print = fingerprint(grant.authority);
  if (!print.ok() || *print != authority) return bad("brings another authority than the token's");
  const auto claim = read_claim(grant.certificate);
  if (!claim.ok()) return bad("brings no certificate");
  FS_ASSIGN(const std::string ours, key_of_request(key.request));
  if (claim->key != ours) return bad("brings a certificate for another key");
  if (claim->node != name || claim->cluster != grant.cluster)
    return bad("brings a certificate for another node");
  return {};
}

}  // namespace

Result<Identity> join_over(TlsConnection connection, const std::string& authority, JoinAsk ask,
                           const KeyAndRequest& key, Nanoseconds timeout) {
  FS_CHECK(connection.claim.has_value());
  FS_TRY(check_is_coordinator(connection));
  const std::string peer = connection.stream->peer();
  const Nanoseconds deadline = steady_now() + timeout;
  ask.request = key.request;
  const std::string text = encode(ask);
  if (text.size() > kLongestDocument)
    return Error{ErrorCode::kInvalidArgument, "is too long a request to join", ask.name, ""};
  FS_TRY(send_document(*connection.stream, text, deadline));
  FS_ASSIGN(const std::string answer, receive_document(*connection.stream, deadline));
  auto grant = parse_join_grant(answer);
  if (!grant.ok()) return with_peer(std::move(grant).error(), peer);
  if (Status fits = check_grant(*grant, authority, ask.name, key); !fits.ok())
    return with_peer(std::move(fits).error(), peer);
  connection.stream->shut_down();
  return Identity{grant->certificate, key.key, grant->authority};
}

Result<Identity> join_cluster(const JoinTarget& target, JoinAsk ask, const KeyAndRequest& key,
                              Nanoseconds timeout) {
  const Nanoseconds deadline = steady_now() + timeout;
  auto socket = connect_to(target.host, target.port, timeout);
  if (!socket.ok()) {
    Error error = std::move(socket).error();
    if (error.code == ErrorCode::kUnavailable)
      error.hint = "see whether the coordinator runs (fsctl cluster start), and check the address";
    return error;
  }
  const std::string endpoint = endpoint_text(target.host, target.port);
  FS_ASSIGN(TlsConnection connection,
            connect_to_join(std::move(*socket), endpoint, target.authority, kJoinProtocol,
                            deadline - steady_now()));
  return join_over(std::move(connection), target.authority, std::move(ask), key,
                   deadline - steady_now());
}

Status serve_join(TlsConnection connection,
                  const std::function<Result<JoinGrant>(const JoinAsk&)>& decide,
                  Nanoseconds timeout) {
  Stream& stream = *connection.stream;
  const Nanoseconds deadline = steady_now() + timeout;
  FS_ASSIGN(const std::string document, receive_document(stream, deadline));
  const auto grant = [&]() -> Result<JoinGrant> {
    FS_ASSIGN(const JoinAsk ask, parse_join_ask(document));
    return decide(ask);
  }();
  const std::string answer = grant.ok() ? encode(*grant) : encode_refusal(grant.error());
  FS_CHECK(answer.size() <= kLongestDocument);
  const Nanoseconds told_by = std::max(deadline, steady_now() + timeout / 4);
  Status told = send_document(stream, answer, told_by);
  if (told.ok()) stream.shut_down();
  if (!grant.ok()) return with_peer(grant.error(), stream.peer());
  return told;
}

}  // namespace fastserve
