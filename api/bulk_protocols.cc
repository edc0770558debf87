#include "api/bulk_protocols.h"

#include <fmt/format.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>

#include "actors/cluster_coordinator.h"

namespace fastserve {
namespace {

/// Listens to what a lane's streams say first, each in a thread of its own: the gate's are for
/// those who come next.
class FirstWords {
 public:
  FirstWords(std::function<void(TlsConnection)> handler, Log log)
      : handler_(std::move(handler)), log_(std::move(log)) {}
  ~FirstWords() {
    std::unique_lock lock(mutex_);
    closing_ = true;
    for (const auto& [key, cut] : listening_) cut.cut();
    changed_.wait(lock, [&] { return threads_ == 0; });
  }

  void listen_to(TlsConnection connection) {
    constexpr size_t kMost = 64;
    std::lock_guard lock(mutex_);
    if (closing_ || threads_ >= kMost)
      return log_.warning(
          fmt::format("no lane: {} connections have not said yet what they are of", threads_));
    const uint64_t key = next_key_++;
    listening_[key] = StreamCut(*connection.stream);
    const auto held = std::make_shared<TlsConnection>(std::move(connection));
    try {
      std::thread([this, key, held] { hear(key, std::move(*held)); }).detach();
      threads_++;
    } catch (const std::system_error& error) {
      listening_.erase(key);
      log_.warning(std::string("no lane: cannot start a thread: ") + error.what());
    }
  }

 private:
  void hear(uint64_t key, TlsConnection connection) {
    auto lane = gathering_.add(std::move(connection));
    {
      std::lock_guard lock(mutex_);
      listening_.erase(key);  // which would hold the connection open
    }
    if (!lane.ok())
      log_.warning("no lane: " + lane.error().message());
    else if (*lane)
      handler_(std::move(**lane));
    std::lock_guard lock(mutex_);  // the last that this thread touches
    threads_--;
    changed_.notify_all();
  }

  const std::function<void(TlsConnection)> handler_;
  const Log log_;
  LaneGathering gathering_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closing_ = false;
  size_t threads_ = 0;
  uint64_t next_key_ = 0;
  std::map<uint64_t, StreamCut> listening_;
};

}  // namespace

Result<BulkProtocols> BulkProtocols::make(const PlainBulk& plain, const std::string& address) {
  BulkProtocols protocols;
  if (!plain.allowed && !plain.networks.empty())
    return Error{ErrorCode::kInvalidArgument, "says nothing without --plain-bulk",
                 "--trusted-network", "give both, or neither: tensors travel in TLS"};
  if (!plain.allowed) return protocols;
  FS_ASSIGN(TrustedNetworks trusted, TrustedNetworks::parse(plain.networks));
  if (plain.networks.empty() && !trusted.hold(address))
    return Error{
        ErrorCode::kInvalidArgument,
        "allows plain tensors on this host alone, and other hosts are to connect to " + address,
        "--plain-bulk", "name the network that nobody listens in: --trusted-network 10.1.0.0/16"};
  protocols.plain_ = std::make_shared<const TrustedNetworks>(std::move(trusted));
  return protocols;
}

std::vector<Gate::Protocol> BulkProtocols::offers(std::function<void(TlsConnection)> handler,
                                                  const Log& log) const {
  const auto gather = [words = std::make_shared<FirstWords>(std::move(handler), log)](
                          TlsConnection connection) { words->listen_to(std::move(connection)); };
  std::vector<Gate::Protocol> offered{{kBulkProtocol, false, gather}};
  if (plain_ == nullptr) return offered;
  const auto trusted = [plain = plain_](const Socket& socket) {
    return plain->hold_peer_of(socket);
  };
  offered.push_back({kPlainBulkProtocol, false, gather, trusted});
  return offered;
}

std::vector<std::string> BulkProtocols::wanted(const Socket& socket) const {
  if (plain_ == nullptr || !plain_->hold_peer_of(socket)) return {kBulkProtocol};
  return {kPlainBulkProtocol, kBulkProtocol};
}

std::string BulkProtocols::told(const TlsConnection& lane) {
  std::string text = lane.protocol == kPlainBulkProtocol ? "tensors plain" : "tensors in TLS 1.3";
  if (!lane.more.empty()) text += fmt::format(" over {} sockets", lane.more.size() + 1);
  return text;
}

}  // namespace fastserve
