// Takes in what a job's parts send to the coordinator. For actors/ alone.
#pragma once

#include "actors/conductor.h"

namespace fastserve {

/// Threads: the lanes'.
class ConductorSink final : public BulkSink {
 public:
  ConductorSink(ConductorShell conductor, std::vector<std::string> owners,
                std::vector<ParameterShard::Range> ranges, bool replicated)
      : conductor_(std::move(conductor)),
        owners_(std::move(owners)),
        ranges_(std::move(ranges)),
        replicated_(replicated) {}

  Result<BulkPlace> place(const std::string& peer, const BulkTag& tag, uint64_t bytes) override;
  void arrived(const std::string& peer, const BulkTag& tag, BulkPlace place) override;
  void lost(const std::string& peer, const Error& why) override;

 private:
  const ConductorShell conductor_;
  const std::vector<std::string> owners_;
  const std::vector<ParameterShard::Range> ranges_;
  const bool replicated_;  // other nodes may come to lead
};

}  // namespace fastserve
