// A node's part in one incarnation of a training job: its trainers, its parameter servers, and the
// deputy that stands between them and the coordinator.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "actors/cluster_messages.h"
#include "actors/messages.h"
#include "model/device.h"
#include "net/lane_hub.h"
#include "train/piece_store.h"

namespace fastserve::messages {

struct DataHere {  // a token file has arrived
  bool validation;
  std::shared_ptr<const std::vector<std::byte>> bytes;
};
struct WeightsHere {
  uint32_t shard;
  StepId step;
  GradientHandle weights;
  size_t frame = 0;  // bytes; 0: plain floats
};
struct GradientHere {  // a frame
  uint32_t shard;
  StepId step;
  Subtree subtree;
  GradientHandle gradient;
  size_t frame;
  std::string peer;
};
struct CopyHere {  // of a shard that this node is to hold, too
  uint32_t shard;
  std::shared_ptr<const ShardState> state;
};
struct MomentsHere {
  uint32_t shard;
  std::shared_ptr<const std::vector<float>> both;  // m, then v
};

struct PeerMet {  // or not: see status
  std::string node;
  uint64_t attempt;
  Status status;
};

struct LocalApplied {  // a step, or passed it over
  uint32_t range;
  StepId step;
};
struct LocalDisplaced {  // the range's displacement is on its way
  uint32_t range;
  StepId round;
};

struct KeepPiece {
  uint32_t shard;
  StepId step;
  std::shared_ptr<const ShardState> state;
  std::shared_ptr<const std::vector<float>> best;  // of another node's shard; null: none
  bool owner;                                      // the shard is this node's
};
struct BestHere {  // of a shard of this node's
  uint32_t shard;
  std::shared_ptr<const std::vector<float>> weights;
};
struct SparePlace {  // for copies of pieces: a node that holds no parameters, but may
  std::string node;
  bool there;
};
struct SendBest {  // to the coordinator
  uint32_t shard;
};

}  // namespace fastserve::messages

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::KeepPiece)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::BestHere)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::SendBest)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::SparePlace)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::DataHere)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::WeightsHere)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::GradientHere)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::MomentsHere)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::CopyHere)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::PeerMet)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::LocalApplied)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::LocalDisplaced)

namespace fastserve {

/// What every part of a node shares. Outlives them all.
struct NodeParts {
  std::string name;
  int lanes = 1;
  std::vector<DeviceFactory> devices;  ///< one of each computes
  DeviceFactory make_host;             ///< as make_device_backend()'s
  Path data_folder;                    ///< token files that jobs have brought, by their fingerprint
  std::shared_ptr<PieceStore> pieces;  ///< of checkpoints
  LaneHub* hub = nullptr;
  const Clock* clock = nullptr;
  /// Connects a bulk lane to a peer; blocks for seconds at most.
  std::function<Status(const wire_messages::Place&)> dial;
  Log log;
};

/// The name under which a node's hub knows the coordinator.
inline const std::string kCoordinatorPeer = "";

/// Speaks to the coordinator as a part, and to the node's own actors in the coordinator's place.
using DeputyActor = caf::typed_actor<
    caf::reacts_to<wire_messages::GiveUnit>, caf::reacts_to<wire_messages::ApplyShard>,
    caf::reacts_to<wire_messages::CloseShard>, caf::reacts_to<wire_messages::SkipShard>,
    caf::reacts_to<wire_messages::CopyShard>, caf::reacts_to<wire_messages::AddPeer>,
    caf::reacts_to<wire_messages::DropPeer>, caf::reacts_to<wire_messages::HeldBy>,
    caf::reacts_to<wire_messages::MakeCopy>, caf::reacts_to<wire_messages::EndPart>,
    caf::reacts_to<messages::Begin>, caf::reacts_to<messages::WorkDone>,
    caf::reacts_to<messages::WorkDropped>, caf::reacts_to<messages::TrainerFailed>,
    caf::reacts_to<messages::Gathered>, caf::reacts_to<messages::Displaced>,
    caf::reacts_to<messages::ShardReady>, caf::reacts_to<messages::LocalApplied>,
    caf::reacts_to<messages::LocalDisplaced>, caf::reacts_to<messages::ShardFailed>,
    caf::reacts_to<messages::StateCopied>, caf::reacts_to<messages::WeightsCopied>,
    caf::reacts_to<messages::TrainerJoined>, caf::reacts_to<messages::CheckpointWritten>,
    caf::reacts_to<messages::Tick>, caf::reacts_to<messages::DataHere>,
    caf::reacts_to<messages::WeightsHere>, caf::reacts_to<messages::GradientHere>,
    caf::reacts_to<messages::MomentsHere>, caf::reacts_to<messages::CopyHere>,
    caf::reacts_to<messages::Hold>, caf::reacts_to<messages::PeerGone>,
    caf::reacts_to<messages::PeerMet>>;

using PieceKeeperActor =
    caf::typed_actor<caf::reacts_to<messages::KeepPiece>, caf::reacts_to<messages::BestHere>,
                     caf::reacts_to<messages::SendBest>, caf::reacts_to<messages::SparePlace>>;

/// Spawn it detached and send it Begin. Ends when told, when the conductor is gone, or after
/// PartFailed; its own actors end with it.
DeputyActor::behavior_type deputy(DeputyActor::pointer self, std::shared_ptr<const NodeParts> node,
                                  wire_messages::PartOrder order, ConductorActor conductor);

}  // namespace fastserve
