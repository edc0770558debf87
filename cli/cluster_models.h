// Models of a cluster's coordinator, as the commands of this machine's know them.
#pragma once

#include <memory>
#include <string>

#include "api/transfer_client.h"
#include "cli/cluster_client.h"
#include "store/store.h"

namespace fastserve {

/// The coordinator's store. Threads: one caller at a time.
class ClusterShelf final : public ModelShelf {
 public:
  explicit ClusterShelf(std::unique_ptr<ClusterClient> client) : client_(std::move(client)) {}
  Result<ModelInfo> show(const ModelRef& ref) const override;
  Result<std::vector<ModelInfo>> list() const override;
  Status point(const ModelRef& ref) override;
  Status rename(const std::string& from, const std::string& to) override;
  Status tag(const ModelRef& ref, const std::string& tag) override;
  Status untag(const std::string& name, const std::string& tag) override;
  Result<uint64_t> remove(const ModelRef& ref) override;
  Status verify(const ModelRef& ref, const std::function<void(double)>& progress,
                const CancelFlag* cancel) override;

 private:
  const std::unique_ptr<ClusterClient> client_;
};

/// A connection that carries a model or an answer; the token is filled in.
Result<OpenedTransfer> open_cluster_transfer(const CommandLine& line, TransferAsk ask);

// The commands, once `line.cluster` is set. Each returns the exit code.

int import_into_cluster(const CommandLine& line, const std::string& directory,
                        const std::string& name);
int export_from_cluster(const CommandLine& line, const std::string& model,
                        const std::string& directory, bool keep_quantised);

}  // namespace fastserve
