#include "actors/first_tensors.h"

#include <algorithm>

namespace fastserve {

using wire_messages::BulkKind;

wire_messages::PartOrder order_of(const ConductorParts& parts, const JobNode& node) {
  wire_messages::PartOrder order;
  order.job = parts.job;
  order.name = parts.name;
  order.spec = parts.spec.to_json().dump();
  order.step = static_cast<uint64_t>(parts.state.steps_done);
  order.trains = node.trains;
  order.data = parts.data_fingerprint;
  order.train_bytes = parts.train_file->size();
  order.validation_bytes = parts.validation_file ? parts.validation_file->size() : 0;
  order.best = parts.collector && parts.best != nullptr;
  return order;
}

void send_data(const ConductorParts& parts, const std::string& node) {
  const auto send = [&](BulkKind tensor, const std::shared_ptr<const std::string>& file) {
    if (file != nullptr)
      parts.hub->send(node, {static_cast<uint64_t>(tensor), parts.job, 0, 0},
                      {{std::as_bytes(std::span(*file)), file}}, 0);
  };
  send(BulkKind::kTrainData, parts.train_file);
  send(BulkKind::kValidationData, parts.validation_file);
}

void send_weights(const ConductorParts& parts, const std::vector<ParameterShard::Range>& ranges,
                  const ShardHolders& holders, const std::string& node) {
  const auto step = static_cast<uint64_t>(parts.state.steps_done);
  const auto run = [&](const std::shared_ptr<const std::vector<float>>& all, size_t shard) {
    const auto& range = ranges[shard];
    return BulkSource{std::as_bytes(std::span(*all).subspan(range.begin, range.end - range.begin)),
                      all};
  };
  for (size_t shard = 0; shard < ranges.size(); shard++) {
    const auto urgency = static_cast<uint32_t>(1 + shard);
    const auto& nodes = holders[shard];
    const bool holds = std::find(nodes.begin(), nodes.end(), node) != nodes.end();
    parts.hub->send(node, {static_cast<uint64_t>(BulkKind::kWeights), parts.job, step, shard},
                    {run(parts.weights, shard)}, urgency);
    // With local steps every node has an optimiser of its own for all of the weights.
    if ((holds || parts.spec.consistency.local()) && step > 0)
      parts.hub->send(node, {static_cast<uint64_t>(BulkKind::kMoments), parts.job, step, shard},
                      {run(parts.m, shard), run(parts.v, shard)}, urgency);
    if (parts.collector && parts.best != nullptr && holds)
      parts.hub->send(node, {static_cast<uint64_t>(BulkKind::kBest), parts.job, step, shard},
                      {run(parts.best, shard)}, wire_messages::kAfterTheStep);
  }
}

}  // namespace fastserve
