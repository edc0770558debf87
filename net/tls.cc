#include "net/tls.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "net/tls_stream.h"

namespace fastserve {
namespace {

Nanoseconds now() { return std::chrono::steady_clock::now().time_since_epoch(); }

// OpenSSL's own socket BIO raises SIGPIPE, which belongs to the host program: ours does not.

int bio_write(BIO* bio, const char* data, size_t size, size_t* written) {
  BIO_clear_retry_flags(bio);
  const int fd = static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio)));
  const ssize_t sent = ::send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
  *written = sent > 0 ? static_cast<size_t>(sent) : 0;
  if (sent < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_write(bio);
  return sent > 0 ? 1 : 0;
}

int bio_read(BIO* bio, char* data, size_t size, size_t* got) {
  BIO_clear_retry_flags(bio);
  const int fd = static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio)));
  const ssize_t received = ::recv(fd, data, size, MSG_DONTWAIT);
  *got = received > 0 ? static_cast<size_t>(received) : 0;
  if (received < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_read(bio);
  if (received == 0) BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
  return received > 0 ? 1 : 0;
}

long bio_control(BIO* bio, int command, long, void*) {
  if (command == BIO_CTRL_EOF) return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0;
  return command == BIO_CTRL_FLUSH ? 1 : 0;
}

BIO* socket_bio(int fd) {
  static BIO_METHOD* const method = [] {
    BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "quiet socket");
    BIO_meth_set_write_ex(made, bio_write);
    BIO_meth_set_read_ex(made, bio_read);
    BIO_meth_set_ctrl(made, bio_control);
    return made;
  }();
  BIO* bio = BIO_new(method);
  if (bio == nullptr) return nullptr;
  BIO_set_data(bio, reinterpret_cast<void*>(static_cast<intptr_t>(fd)));
  BIO_set_init(bio, 1);
  return bio;
}

// The handshake ---------------------------------------------------------------------------------

/// What the callbacks of a handshake need to know, and what they find out.
struct Handshake {
  std::vector<std::string> offered;    // protocols, by the side that answers
  TrafficSecret of_client, of_server;  // of what is sent after it
};

Handshake* handshake_of(const SSL* ssl) { return static_cast<Handshake*>(SSL_get_app_data(ssl)); }

/// `line`: LABEL, the client's random and the secret, in hex, as in a key log.
void note_secret(const SSL* ssl, const char* line) {
  Handshake* const handshake = handshake_of(ssl);
  const std::string_view text(line);
  const bool client = text.starts_with("CLIENT_TRAFFIC_SECRET_0 ");
  if (handshake == nullptr || (!client && !text.starts_with("SERVER_TRAFFIC_SECRET_0 "))) return;
  const std::string_view hex = text.substr(text.rfind(' ') + 1);
  std::vector<unsigned char> bytes(hex.size() / 2);
  const auto digit = [](char c) { return c <= '9' ? c - '0' : (c | 32) - 'a' + 10; };
  for (size_t i = 0; i < bytes.size(); i++)
    bytes[i] = static_cast<unsigned char>(16 * digit(hex[2 * i]) + digit(hex[2 * i + 1]));
  (client ? handshake->of_client : handshake->of_server) = TrafficSecret(std::move(bytes));
}

/// Runs `attempt` until it returns 1 or fails for good, waiting for the socket in between.
template <class Attempt>
Status drive(SSL* ssl, int fd, Nanoseconds deadline, const Attempt& attempt) {
  while (true) {
    ERR_clear_error();
    const int done = attempt();
    if (done == 1) return {};
    const int error = SSL_get_error(ssl, done);
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
      return openssl_error(ErrorCode::kUnavailable, "the connection broke in the handshake");
    pollfd waiting{fd, static_cast<short>(error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT), 0};
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - now()).count();
    if (left <= 0)
      return Error{ErrorCode::kDeadlineExceeded, "does not finish the handshake", "",
                   "see whether a node of the cluster listens there"};
    ::poll(&waiting, 1, static_cast<int>(std::min<int64_t>(left, 1000)));
  }
}

/// What a failed check of the peer's certificate means to a user.
Error explain(long verdict) {
  Error error{ErrorCode::kInvalidArgument, "", "", ""};
  switch (verdict) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      error.what = "the peer's certificate has expired";
      error.hint = "let the node join again, or set the clocks right";
      break;
    case X509_V_ERR_CERT_NOT_YET_VALID:
      error.what = "the peer's certificate is not yet valid";
      error.hint = "set the clocks of both machines right";
      break;
    default:
      error.what = fmt::format("the peer's certificate is none of this cluster's ({})",
                               X509_verify_cert_error_string(verdict));
      error.hint = "let the node join this cluster";
  }
  return error;
}

/// The same from the other side: what the peer's alert says of our certificate.
Error explain_alert(Error error) {
  const auto says = [&](const char* word) { return error.what.find(word) != std::string::npos; };
  if (!says("alert")) return error;
  error.code = ErrorCode::kInvalidArgument;
  if (says("certificate required"))
    error.hint = "the peer lets nodes of its cluster in, and this one has not joined";
  else if (says("expired"))
    error.hint = "this node's certificate has expired: let it join again";
  else if (says("unknown ca") || says("certificate"))
    error.hint = "this node's certificate is none of that cluster's: let it join there";
  else if (says("no application protocol"))
    error = {ErrorCode::kUnsupported, error.what, error.where,
             "the two sides run versions that do not speak with each other: update the older"};
  return error;
}

std::string peer_certificate(SSL* ssl) {
  const CertificateHandle certificate(SSL_get1_peer_certificate(ssl));
  if (certificate == nullptr) return {};
  auto text = certificate_text(certificate.get());
  return text.ok() ? *text : std::string();
}

std::string chosen_protocol(SSL* ssl) {
  const unsigned char* name = nullptr;
  unsigned int size = 0;
  SSL_get0_alpn_selected(ssl, &name, &size);
  return std::string(reinterpret_cast<const char*>(name), size);
}

Result<SslHandle> new_ssl(SSL_CTX* context, int fd, Handshake& handshake) {
  SslHandle ssl(SSL_new(context));
  BIO* bio = ssl == nullptr ? nullptr : socket_bio(fd);
  if (bio == nullptr) return openssl_error(ErrorCode::kResourceExhausted, "no memory for TLS");
  SSL_set_bio(ssl.get(), bio, bio);
  SSL_set_app_data(ssl.get(), &handshake);
  return ssl;
}

/// From here on OpenSSL is out of it, or all of TLS. It has read nothing beyond the handshake's
/// last record; the welcome is the one record that has gone under the new keys.
Result<std::unique_ptr<Stream>> stream_after(SSL* ssl, Handshake& handshake, bool client,
                                             Socket socket, std::string peer) {
  if (chosen_protocol(ssl).ends_with(kPlainEnding))
    return plain_stream(std::move(socket), std::move(peer));
  FS_ASSIGN(const RecordSuite suite, record_suite(SSL_get_current_cipher(ssl)));
  TrafficSecret& ours = client ? handshake.of_client : handshake.of_server;
  TrafficSecret& theirs = client ? handshake.of_server : handshake.of_client;
  using Use = RecordKey::Use;
  FS_ASSIGN(RecordKey sealing,
            RecordKey::create(suite, std::move(ours), Use::kSeal, client ? 0 : 1));
  FS_ASSIGN(RecordKey opening,
            RecordKey::create(suite, std::move(theirs), Use::kOpen, client ? 1 : 0));
  return tls_stream(std::move(socket), std::move(sealing), std::move(opening), std::move(peer));
}

Result<ContextHandle> new_context() {
  ContextHandle context(SSL_CTX_new(TLS_method()));
  if (context == nullptr || SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION) != 1)
    return openssl_error(ErrorCode::kInternal, "TLS 1.3 cannot be had");
  SSL_CTX_set_num_tickets(context.get(), 0);
  SSL_CTX_set_mode(context.get(),
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_keylog_callback(context.get(), note_secret);
  return context;
}

/// One byte from the side that answers says that the other one's certificate was accepted: in TLS
/// 1.3 the handshake of the side that speaks first ends before it knows.
constexpr unsigned char kWelcome = 1;

Status say_hello(SSL* ssl, int fd, const std::vector<std::string>& protocols,
                 Nanoseconds deadline) {
  std::string wire;
  for (const std::string& protocol : protocols) {
    FS_CHECK(protocol.size() < 256);
    wire += static_cast<char>(protocol.size());
    wire += protocol;
  }
  SSL_set_alpn_protos(ssl, reinterpret_cast<const unsigned char*>(wire.data()),
                      static_cast<unsigned int>(wire.size()));
  SSL_set_connect_state(ssl);
  Status shaken = drive(ssl, fd, deadline, [&] { return SSL_do_handshake(ssl); });
  const long verdict = SSL_get_verify_result(ssl);
  if (!shaken.ok() && verdict != X509_V_OK) return explain(verdict);
  if (!shaken.ok()) return explain_alert(std::move(shaken).error());
  unsigned char welcome = 0;
  Status welcomed = drive(ssl, fd, deadline, [&] { return SSL_read(ssl, &welcome, 1); });
  if (!welcomed.ok()) return explain_alert(std::move(welcomed).error());
  const bool known =
      std::find(protocols.begin(), protocols.end(), chosen_protocol(ssl)) != protocols.end();
  if (welcome == kWelcome && known) return {};
  return Error{ErrorCode::kUnsupported, "does not speak " + protocols.front(), "",
               "the two sides run versions that do not speak with each other: update the older"};
}

Error at(Error error, const std::string& endpoint) {
  if (error.where.empty()) error.where = endpoint;
  return error;
}

/// The first of the client's protocols that is offered.
int choose_protocol(SSL* ssl, const unsigned char** out, unsigned char* out_size,
                    const unsigned char* in, unsigned int in_size, void*) {
  const auto& offered = handshake_of(ssl)->offered;
  for (unsigned int i = 0; i < in_size; i += 1u + in[i]) {
    const std::string name(reinterpret_cast<const char*>(in + i + 1), in[i]);
    if (std::find(offered.begin(), offered.end(), name) == offered.end()) continue;
    *out = in + i + 1;
    *out_size = in[i];
    return SSL_TLSEXT_ERR_OK;
  }
  return SSL_TLSEXT_ERR_ALERT_FATAL;
}

}  // namespace

std::vector<std::unique_ptr<Stream>> TlsConnection::all_streams() && {
  std::vector<std::unique_ptr<Stream>> all = std::move(more);
  all.push_back(std::move(stream));
  return all;
}

struct TlsParty::State {
  ContextHandle context;
};

TlsParty::TlsParty(std::unique_ptr<State> state) : state_(std::move(state)) {}
TlsParty::TlsParty(TlsParty&&) noexcept = default;
TlsParty& TlsParty::operator=(TlsParty&&) noexcept = default;
TlsParty::~TlsParty() = default;

Result<TlsParty> TlsParty::create(const Identity& identity) {
  FS_ASSIGN(const CertificateHandle certificate, parse_certificate(identity.certificate));
  FS_ASSIGN(const CertificateHandle authority, parse_certificate(identity.authority));
  FS_ASSIGN(const KeyHandle key, parse_key(identity.key));
  FS_ASSIGN(ContextHandle context, new_context());
  SSL_CTX* raw = context.get();
  // The authority goes out too: a node that joins knows its fingerprint and nothing else.
  if (SSL_CTX_use_certificate(raw, certificate.get()) != 1 ||
      SSL_CTX_use_PrivateKey(raw, key.get()) != 1 || SSL_CTX_check_private_key(raw) != 1 ||
      SSL_CTX_add1_chain_cert(raw, authority.get()) != 1 ||
      X509_STORE_add_cert(SSL_CTX_get_cert_store(raw), authority.get()) != 1)
    return openssl_error(ErrorCode::kCorrupt,
                         "the node's certificate and key do not belong together");
  SSL_CTX_set_alpn_select_cb(raw, choose_protocol, nullptr);
  auto state = std::make_unique<State>();
  state->context = std::move(context);
  return TlsParty(std::move(state));
}

Result<TlsConnection> TlsParty::connect(Socket socket, const std::string& endpoint,
                                        const std::string& node,
                                        const std::vector<std::string>& protocols,
                                        Nanoseconds timeout) const {
  Handshake handshake;
  FS_ASSIGN(SslHandle ssl, new_ssl(state_->context.get(), socket.get(), handshake));
  SSL_set_verify(ssl.get(), SSL_VERIFY_PEER, nullptr);
  const Status greeted = say_hello(ssl.get(), socket.get(), protocols, now() + timeout);
  if (!greeted.ok()) return at(greeted.error(), endpoint);
  auto claim = read_claim(peer_certificate(ssl.get()));
  if (!claim.ok()) return at(claim.error(), endpoint);
  if (!node.empty() && claim->node != node)
    return Error{ErrorCode::kInvalidArgument, fmt::format("is {}, and not {}", claim->node, node),
                 endpoint, "the address belongs to another node now: see fsctl node list"};
  TlsConnection made;
  const std::string peer = fmt::format("{} ({})", claim->node, endpoint);
  FS_ASSIGN(made.stream, stream_after(ssl.get(), handshake, true, std::move(socket), peer));
  made.claim = std::move(*claim);
  made.protocol = chosen_protocol(ssl.get());
  return made;
}

Result<TlsConnection> TlsParty::accept(Socket socket, const std::string& endpoint,
                                       const std::vector<std::string>& protocols,
                                       const std::vector<std::string>& open_protocols,
                                       Nanoseconds timeout) const {
  const Nanoseconds deadline = now() + timeout;
  Handshake handshake;
  handshake.offered = protocols;
  handshake.offered.insert(handshake.offered.end(), open_protocols.begin(), open_protocols.end());
  FS_ASSIGN(SslHandle ssl, new_ssl(state_->context.get(), socket.get(), handshake));
  SSL_set_verify(ssl.get(),
                 SSL_VERIFY_PEER | (open_protocols.empty() ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0),
                 nullptr);
  SSL_set_accept_state(ssl.get());
  Status shaken =
      drive(ssl.get(), socket.get(), deadline, [&] { return SSL_do_handshake(ssl.get()); });
  const long verdict = SSL_get_verify_result(ssl.get());
  if (!shaken.ok() && verdict != X509_V_OK) return at(explain(verdict), endpoint);
  if (!shaken.ok()) return at(explain_alert(std::move(shaken).error()), endpoint);

  TlsConnection made;
  made.protocol = chosen_protocol(ssl.get());
  std::string peer = endpoint;
  if (const std::string certificate = peer_certificate(ssl.get()); !certificate.empty()) {
    auto claim = read_claim(certificate);
    if (!claim.ok()) return at(claim.error(), endpoint);
    peer = fmt::format("{} ({})", claim->node, endpoint);
    made.claim = std::move(*claim);
  }
  const bool open = std::find(open_protocols.begin(), open_protocols.end(), made.protocol) !=
                    open_protocols.end();
  if (made.protocol.empty() || (!made.claim && !open))
    return Error{ErrorCode::kInvalidArgument, "shows no certificate", endpoint,
                 "let the node join this cluster"};
  Status welcomed =
      drive(ssl.get(), socket.get(), deadline, [&] { return SSL_write(ssl.get(), &kWelcome, 1); });
  if (!welcomed.ok()) return at(std::move(welcomed).error(), endpoint);
  FS_ASSIGN(made.stream, stream_after(ssl.get(), handshake, false, std::move(socket), peer));
  return made;
}

Result<TlsConnection> connect_to_join(Socket socket, const std::string& endpoint,
                                      const std::string& authority_fingerprint,
                                      const std::string& protocol, Nanoseconds timeout) {
  FS_ASSIGN(const ContextHandle context, new_context());
  Handshake handshake;
  FS_ASSIGN(SslHandle ssl, new_ssl(context.get(), socket.get(), handshake));
  // Checked below instead, against the one authority that is known.
  SSL_set_verify(ssl.get(), SSL_VERIFY_NONE, nullptr);
  const Error stranger{ErrorCode::kInvalidArgument, "is not of the cluster that the token is for",
                       endpoint, "check the address, and that the token is whole"};
  const Nanoseconds deadline = now() + timeout;
  const Status greeted = say_hello(ssl.get(), socket.get(), {protocol}, deadline);
  if (!greeted.ok()) return at(greeted.error(), endpoint);
  const CertificateHandle leaf(SSL_get1_peer_certificate(ssl.get()));
  STACK_OF(X509)* const chain = SSL_get_peer_cert_chain(ssl.get());
  X509* authority = nullptr;
  for (int i = 0; i < sk_X509_num(chain); i++)
    if (certificate_hash(sk_X509_value(chain, i)) == authority_fingerprint)
      authority = sk_X509_value(chain, i);
  if (leaf == nullptr || authority == nullptr) return stranger;
  using StoreHandle = std::unique_ptr<X509_STORE, FreeWith<X509_STORE_free>>;
  using CheckHandle = std::unique_ptr<X509_STORE_CTX, FreeWith<X509_STORE_CTX_free>>;
  const StoreHandle store(X509_STORE_new());
  const CheckHandle check(X509_STORE_CTX_new());
  if (store == nullptr || check == nullptr || X509_STORE_add_cert(store.get(), authority) != 1 ||
      X509_STORE_CTX_init(check.get(), store.get(), leaf.get(), nullptr) != 1)
    return stranger;
  if (X509_verify_cert(check.get()) != 1) {
    const int verdict = X509_STORE_CTX_get_error(check.get());
    const bool clocks =
        verdict == X509_V_ERR_CERT_HAS_EXPIRED || verdict == X509_V_ERR_CERT_NOT_YET_VALID;
    return clocks ? at(explain(verdict), endpoint) : stranger;
  }
  FS_ASSIGN(const std::string text, certificate_text(leaf.get()));
  auto claim = read_claim(text);
  if (!claim.ok()) return at(claim.error(), endpoint);
  TlsConnection made;
  const std::string peer = fmt::format("{} ({})", claim->node, endpoint);
  FS_ASSIGN(made.stream, stream_after(ssl.get(), handshake, true, std::move(socket), peer));
  made.claim = std::move(*claim);
  made.protocol = protocol;
  return made;
}

}  // namespace fastserve
