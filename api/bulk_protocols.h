// How a process of a cluster speaks for tensors: under TLS, or plain where both ends allow it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/cluster_host.h"
#include "net/gate.h"
#include "net/lane_streams.h"
#include "net/trusted_networks.h"

namespace fastserve {

/// Threads: any.
class BulkProtocols {
 public:
  /// Only under TLS.
  BulkProtocols() = default;
  /// kInvalidArgument when networks are named that nothing comes of, or when `address`, where peers
  /// are to connect, is beyond this host and no network is named.
  static Result<BulkProtocols> make(const PlainBulk& plain, const std::string& address);

  /// What to offer to those who connect. `handler` gets each lane once all its streams are here.
  std::vector<Gate::Protocol> offers(std::function<void(TlsConnection)> handler,
                                     const Log& log) const;
  /// What to ask the other end of a connection for.
  std::vector<std::string> wanted(const Socket& socket) const;
  /// "tensors in TLS 1.3", "tensors plain over 2 sockets".
  static std::string told(const TlsConnection& lane);

 private:
  std::shared_ptr<const TrustedNetworks> plain_;  // null: nowhere
};

}  // namespace fastserve
