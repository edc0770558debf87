// The coordinator's side of connections that carry models and the tokens of answers.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "api/cluster_duties.h"
#include "api/connection_threads.h"
#include "cluster/control.h"
#include "cluster/transfer_documents.h"

namespace fastserve {

/// What TLS calls the protocol by which tokens are asked for: at a coordinator's port by clients,
/// at a node's by the coordinator. After the first words it is that of schema/fastserve.capnp.
inline constexpr const char* kGenerateProtocol = "fastserve-generate/1";

/// Owns:    threads, one a connection. Destruction cuts all of them.
/// Threads: connected() from any.
class TransferDesk {
 public:
  struct Around {
    ClusterDuties* duties = nullptr;
    std::shared_ptr<SharedStore> store;
    std::function<Result<AccessRole>(const std::string& token)> check_token;
    /// A connection of kGenerateProtocol to the node's port; blocks for seconds at most.
    std::function<Result<TlsConnection>(const std::string& node)> dial;
    Log log;
  };
  explicit TransferDesk(Around around) : around_(std::move(around)) {}

  /// Of kModelsProtocol or kGenerateProtocol. Returns soon.
  void connected(TlsConnection connection);

 private:
  /// Each transfer holds a piece in memory.
  static constexpr size_t kMostTransfers = 8, kMostRelays = 256;

  void serve(TlsConnection connection, const CancelFlag& closing);
  Status answer(TlsConnection& connection, const TransferAsk& ask, const CancelFlag& closing);
  Result<std::string> who(const TlsConnection& connection, const TransferAsk& ask) const;
  Status give_model(Stream& stream, const TransferAsk& ask, const CancelFlag& closing);
  Status take_model(Stream& stream, const TransferAsk& ask, const std::string& node,
                    const CancelFlag& closing);
  Status give_text(Stream& stream, const TransferAsk& ask, const std::string& node,
                   const CancelFlag& closing);
  Status relay(TlsConnection& connection, const TransferAsk& ask, const CancelFlag& closing);

  const Around around_;
  ConnectionThreads transfers_{kMostTransfers, "transfers of models"};
  ConnectionThreads relays_{kMostRelays, "clients that generate"};
};

}  // namespace fastserve
