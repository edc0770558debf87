#include "api/bulk_protocols.h"

#include "actors/cluster_coordinator.h"

namespace fastserve {

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

std::vector<Gate::Protocol> BulkProtocols::offers(
    const std::function<void(TlsConnection)>& handler) const {
  std::vector<Gate::Protocol> offered{{kBulkProtocol, false, handler}};
  if (plain_ == nullptr) return offered;
  const auto trusted = [plain = plain_](const Socket& socket) {
    return plain->hold_peer_of(socket);
  };
  offered.push_back({kPlainBulkProtocol, false, handler, trusted});
  return offered;
}

std::vector<std::string> BulkProtocols::wanted(const Socket& socket) const {
  if (plain_ == nullptr || !plain_->hold_peer_of(socket)) return {kBulkProtocol};
  return {kPlainBulkProtocol, kBulkProtocol};
}

std::string BulkProtocols::told(const std::string& protocol) {
  return protocol == kPlainBulkProtocol ? "tensors plain" : "tensors in TLS 1.3";
}

}  // namespace fastserve
