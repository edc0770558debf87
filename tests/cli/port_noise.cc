// port_noise AUTHORITY TOKEN SEED CONNECTIONS HOST:PORT [HOST:PORT...]: what a stranger, a node of
// another cluster, one whose certificate ran out and a member gone mad may do to a cluster's ports.
// AUTHORITY: the folder of the cluster's authority. TOKEN: lets nodes join. Ports of a deployment,
// which know no TLS, are among the ports as well.
//
// Says how many connections it made, and how many handshakes were let through.
#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <ctime>
#include <optional>
#include <thread>
#include <vector>

#include "base/endpoint.h"
#include "base/rng.h"
#include "cluster/tokens.h"
#include "net/bulk_frame.h"
#include "net/document_stream.h"
#include "net/join.h"

using namespace fastserve;

namespace {

constexpr int kThreads = 4;
constexpr auto kPatience = std::chrono::seconds(5);
constexpr int64_t kHour = 3600;
/// The names of protocols as a peer sees them; the last is none.
const std::array<std::string, 8> kProtocols = {
    "fastserve-control/1", "fastserve-bulk/3",     "fastserve-bulk/3+plain", "fastserve-join/1",
    "fastserve-client/1",  "fastserve-generate/1", "fastserve-models/1",     "http/1.1"};

template <class T>
T must(Result<T> result) {
  if (!result.ok()) {
    fmt::print(stderr, "{}\n", result.error().message());
    std::exit(1);
  }
  return std::move(*result);
}

/// Something that some parser takes for the beginning of a message: a length, a Cap'n Proto segment
/// table, a frame of a lane whose checksum is right, the header of one of CAF's messages.
std::string noise(Rng& rng) {
  std::string bytes;
  const auto word = [&](uint32_t value) { bytes.append(reinterpret_cast<const char*>(&value), 4); };
  switch (rng.below(6)) {
    case 0:
      break;
    case 1:
      word(static_cast<uint32_t>(rng.below(2) == 0 ? rng.below(100) : rng.next()));
      break;
    case 2:
      word(static_cast<uint32_t>(rng.below(4)));
      word(static_cast<uint32_t>(rng.below(2) == 0 ? rng.below(64) : rng.next()));
      break;
    case 3: {
      if (rng.below(2) == 0) {  // which stream of which lane it is
        const std::string part = fmt::format("{{\"lane\":\"{:016x}\",\"index\":{},\"count\":{}}}",
                                             rng.below(2), rng.below(3), 1 + rng.below(2));
        word(static_cast<uint32_t>(part.size()));
        bytes += part;
      }
      BulkFrame frame;
      frame.turn = static_cast<uint32_t>(rng.below(3));
      frame.kind = static_cast<BulkFrame::Kind>(1 + rng.below(3));
      frame.message = rng.below(4);
      frame.tag.kind = static_cast<uint32_t>(rng.below(12));
      frame.total = rng.below(2) == 0 ? rng.below(1 << 16) : rng.next();
      frame.offset = rng.below(2) == 0 ? 0 : rng.below(1 << 16);
      frame.length = static_cast<uint32_t>(rng.below(2) == 0 ? rng.below(1 << 12) : rng.next());
      const BulkFrame::Bytes header = frame.encode();
      bytes.append(reinterpret_cast<const char*>(header.data()), header.size());
      break;
    }
    case 4: {
      const std::string ticket = "{\"ticket\": \"0123456789abcdef\"}";
      word(static_cast<uint32_t>(ticket.size()));
      bytes += ticket;
      bytes += static_cast<char>(rng.below(8));  // CAF's operation
      break;
    }
    default:
      bytes += "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
  }
  // Mostly little, so that parsers get to see an end; sometimes more than any buffer.
  const size_t more = rng.below(8) == 0 ? rng.below(1 << 17) : rng.below(200);
  for (size_t i = 0; i < more; i++) bytes += static_cast<char>(rng.next());
  return bytes;
}

class Noise {
 public:
  Noise(const Path& folder, const std::string& token, std::vector<Endpoint> ports)
      : ports_(std::move(ports)), token_(must(parse_token(token, Token::Kind::kJoin))) {
    const int64_t now = ::time(nullptr);
    const CertificateAuthority ours = must(CertificateAuthority::load(folder));
    const CertificateAuthority other = must(CertificateAuthority::create(now));
    parties_.push_back(signed_by(other, other.certificate(), now + kHour));  // answers nobody here
    parties_.push_back(signed_by(other, ours.certificate(), now + kHour));   // hears, is not heard
    parties_.push_back(signed_by(ours, ours.certificate(), now - kHour / 2));  // ran out
    parties_.push_back(signed_by(ours, ours.certificate(), now + kHour));  // of no node that joined
    parties_.push_back(must(TlsParty::create(join())));
  }

  void make(uint64_t seed, int connections) {
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; t++)
      threads.emplace_back([this, seed, connections, t] {
        Rng rng(mix64(seed) + static_cast<uint64_t>(t));
        std::array<std::optional<TlsConnection>, 8> silent;  // held open, saying nothing
        for (int i = t; i < connections; i += kThreads) {
          auto connection = connect(rng);
          if (connection && rng.below(8) == 0) silent[rng.below(8)] = std::move(connection);
        }
      });
    for (std::thread& thread : threads) thread.join();
    fmt::print("{} connections, {} handshakes\n", connections, handshakes_.load());
  }

 private:
  TlsParty signed_by(const CertificateAuthority& authority, const std::string& trusted,
                     int64_t expires) {
    const KeyAndRequest key = must(make_key_and_request());
    const NodeClaim claim{authority.cluster(), "noise", {"trainer"}, expires};
    const std::string certificate =
        must(authority.sign(key.request, claim, std::min<int64_t>(::time(nullptr), expires - 1)));
    auto party = TlsParty::create({certificate, key.key, trusted});
    // Where trust and certificate must be of one authority, both are the other one's.
    if (!party.ok()) party = TlsParty::create({certificate, key.key, authority.certificate()});
    return must(std::move(party));
  }

  Identity join() {
    JoinAsk ask;
    ask.version = "0.1.0";
    ask.token = token_.text();
    ask.name = fmt::format("noise-{}", ::getpid());
    ask.roles = {"trainer", "parameter-server"};
    ask.lanes = 1;
    const Endpoint& coordinator = ports_.front();
    return must(join_cluster({coordinator.host, coordinator.port, token_.authority}, ask,
                             must(make_key_and_request()), kPatience));
  }

  std::optional<TlsConnection> connect(Rng& rng) {
    const Endpoint& to = ports_[rng.below(ports_.size())];
    auto socket = connect_to(to.host, to.port, kPatience);
    if (!socket.ok()) {
      fmt::print(stderr, "{}\n", socket.error().message());
      return {};
    }
    const std::string name = endpoint_text(to.host, to.port);
    const uint64_t who = rng.below(12);  // four with a bad certificate, then the member
    if (who >= 10) {
      say(plain_stream(std::move(*socket), name).get(), rng);
      return {};
    }
    const std::string& protocol = kProtocols[rng.below(kProtocols.size())];
    auto connection =
        who >= 8 ? connect_to_join(std::move(*socket), name, token_.authority, protocol, kPatience)
                 : parties_[std::min<uint64_t>(who, 4)].connect(std::move(*socket), name, "",
                                                                {protocol}, kPatience);
    if (!connection.ok()) return {};
    handshakes_++;
    for (uint64_t i = rng.below(4); i > 0; i--) say(connection->stream.get(), rng);
    return std::move(*connection);
  }

  /// Sometimes beneath TLS, as nobody but a broken network would.
  void say(Stream* stream, Rng& rng) {
    const std::string bytes = noise(rng);
    if (rng.below(10) == 0) {
      (void)!::send(stream->fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      return;
    }
    // The other end may have closed, or wait for sense before it reads on: neither is awaited.
    (void)send_bytes(*stream, std::as_bytes(std::span(bytes)), std::chrono::milliseconds(50),
                     nullptr);
  }

  const std::vector<Endpoint> ports_;
  const Token token_;
  std::vector<TlsParty> parties_;
  std::atomic<int> handshakes_{0};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    fmt::print(stderr, "port_noise AUTHORITY TOKEN SEED CONNECTIONS HOST:PORT [HOST:PORT...]\n");
    return 2;
  }
  std::vector<Endpoint> ports;
  for (int i = 5; i < argc; i++) ports.push_back(must(parse_endpoint(argv[i])));
  Noise(argv[1], argv[2], ports).make(std::stoull(argv[3]), std::stoi(argv[4]));
  return 0;
}
