// What a node's part of a job computes on: plain parts, built from the order. For actors/ alone.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actors/node_part.h"
#include "train/device_backend.h"
#include "train/gradient_codec.h"
#include "train/gradient_worker.h"
#include "train/local_range.h"
#include "train/loose_range.h"
#include "train/node_work.h"
#include "train/shard_copies.h"
#include "train/turns.h"
#include "train/weight_codec.h"
#include "train/weight_replica.h"

namespace fastserve {

/// The nodes that get this one's weights. Threads: any.
class PeerList {
 public:
  void add(std::string node);
  void drop(const std::string& node);
  std::vector<std::string> all() const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> nodes_;
};

/// The parameter servers of the node's own shards. Threads: any.
class ServerTable {
 public:
  void set(uint32_t shard, ParameterServerActor server) {
    std::lock_guard lock(mutex_);
    servers_[shard] = std::move(server);
  }
  /// Null: the shard is not here.
  ParameterServerActor get(uint32_t shard) const {
    std::lock_guard lock(mutex_);
    const auto it = servers_.find(shard);
    return it == servers_.end() ? ParameterServerActor() : it->second;
  }
  void clear() {
    std::lock_guard lock(mutex_);
    servers_.clear();
  }

 private:
  mutable std::mutex mutex_;
  std::map<uint32_t, ParameterServerActor> servers_;
};

/// Owned by the deputy; its actors and the sink hold it, too.
struct PartRoom {
  explicit PartRoom(const std::string& me) : held(me) {}
  /// What the order alone says: settings and shards. kInvalidArgument, kCorrupt.
  static Result<std::shared_ptr<PartRoom>> create(std::shared_ptr<const NodeParts> node,
                                                  wire_messages::PartOrder order);
  /// The data from the node's folder, if it is there.
  bool find_data();
  /// Keeps what came from the coordinator, for the next time as well.
  Status keep_data(bool validation, const std::vector<std::byte>& bytes);
  bool has_data() const { return dataset.train.size() > 0; }
  /// Weights, shards and workers. Requires the data.
  Status build();

  /// Who works on it is to stop; also who waits for weights that will not come.
  void close() {
    closing = true;
    gate.end();
  }

  bool owns(uint32_t shard) const { return held.holds(shard); }
  /// Whether there is such work, and this node computes.
  bool can_compute(const WorkItem& unit) const;
  /// What the nodes hold when the job begins. Requires the weights in place.
  void make_shadows();
  /// A frame's bytes in a buffer of `frames`.
  static std::span<std::byte> frame_in(const GradientHandle& buffer, size_t bytes) {
    return {reinterpret_cast<std::byte*>(buffer->data()), bytes};
  }
  /// Sends a shard's weights to the peers that do not hold it, if this node leads it, or to one.
  void publish(uint32_t shard_index, StepId at, std::span<const float> weights,
               const std::string* only);
  /// Sends all of a shard's state to a node that is to hold it, too.
  void send_copy(uint32_t shard, const std::shared_ptr<const ShardState>& state,
                 const std::string& to);

  std::shared_ptr<const NodeParts> node;
  wire_messages::PartOrder order;
  std::vector<DeviceFactory> devices;  ///< of the node's, those that are fit
  TrainSpec spec;
  TrainPlan plan;
  std::vector<ParameterShard::Range> ranges;
  std::vector<std::unique_ptr<GradientPool>> slices;  ///< of each shard: gradients and weights
  std::vector<GradientCodec> gradient_codecs;         ///< of each shard, like what follows
  std::vector<WeightCodec> weight_codecs;
  std::vector<WeightShadow> shadows;                  ///< used by the owning shard's actor
  std::vector<std::unique_ptr<GradientPool>> frames;  ///< large enough for any frame
  PeerList peers;
  HeldShards held;
  ServerTable servers;
  Dataset dataset;
  std::unique_ptr<Sampler> sampler;
  std::unique_ptr<EvaluationPlan> evaluation;
  std::unique_ptr<TrainBackend> backend;
  std::unique_ptr<GradientPool> pool;
  WeightsGate gate;
  std::optional<Turns> turns;  ///< of the node's own shards, as many at once as it has lanes
  std::unique_ptr<WeightReplica> replica;
  std::vector<std::shared_ptr<ParameterShard>> shards;  ///< null: another node's
  std::vector<std::shared_ptr<LocalRange>> local;  ///< of each shard, with local steps; or none
  std::vector<std::shared_ptr<LooseRange>> loose;  ///< the same with loose consistency
  std::vector<std::shared_ptr<GradientWorker>> workers;
  std::atomic<bool> closing{false};

 private:
  Status hold(const wire_messages::PartOrder& order);
  Path data_file(bool validation) const;
  void make_codecs(const std::vector<ParameterTile>& tiles, const ParameterLayout& layout);
};

/// Takes in what peers send for the part. Threads: the lanes'.
class PartSink final : public BulkSink {
 public:
  PartSink(std::shared_ptr<PartRoom> room, DeputyActor deputy)
      : room_(std::move(room)), deputy_(std::move(deputy)) {}
  /// Where pieces of checkpoints go, and the best weights, which may have come before.
  void set_keeper(PieceKeeperActor keeper);

  Result<BulkPlace> place(const std::string& peer, const BulkTag& tag, uint64_t bytes) override;
  void arrived(const std::string& peer, const BulkTag& tag, BulkPlace place) override;
  void lost(const std::string& peer, const Error& why) override;

 private:
  Result<uint32_t> shard_of(const BulkTag& tag, uint64_t bytes, uint64_t copies) const;
  Result<BulkPlace> place_gradient(const std::string& peer, const BulkTag& tag, uint64_t bytes);
  Result<BulkPlace> place_weights(const std::string& peer, const BulkTag& tag, uint64_t bytes);
  Result<BulkPlace> place_piece(const std::string& peer, const BulkTag& tag, uint64_t bytes);
  void piece_here(const BulkTag& tag, const BulkPlace& place);

  std::shared_ptr<PartRoom> room_;
  DeputyActor deputy_;
  std::mutex mutex_;
  PieceKeeperActor keeper_;
  std::vector<messages::BestHere> early_;  // before there was a keeper
};

}  // namespace fastserve
