// What a coordinator and its nodes say to each other between processes. For actors/*.cc only.
//
// Every message is small; tensors go beside it (net/lane_hub.h). Floats travel as their bits, since
// CAF 0.17 changes some of them.
#pragma once

#include <bit>
#include <caf/all.hpp>
#include <string>
#include <vector>

#include "actors/piece_messages.h"
#include "base/result.h"
#include "train/parameter_shard.h"

namespace fastserve::wire_messages {

/// Raised with every change that an older process would not understand.
inline constexpr uint32_t kProtocol = 4;

/// Where a node's bulk lane can be reached.
struct Place {
  std::string node, host;
  uint16_t port = 0;
};

// Node to coordinator.
struct NodeHello {
  uint32_t protocol = kProtocol;
  std::string version;
  Place place;
  std::vector<std::string> roles;
  uint32_t lanes = 0;
  std::string device, numerics;
  uint64_t process = 0;  ///< random; another one under the same name is another node
  std::string ticket;    ///< what the coordinator wrote on the connection before CAF spoke
  int64_t unix_seconds = 0;
};
struct Renew {  ///< asks for the node's next certificate
  std::string node;
  uint64_t process = 0;  ///< as in its hello
  std::string request;   ///< PEM
};
struct AskPeer {  ///< whether the node that has shown this certificate to another belongs here
  std::string cluster, node, key;  ///< as in its NodeClaim
};
struct NodeTick {
  std::string node;
  int64_t unix_seconds = 0;
  uint64_t bytes_sent = 0, bytes_received = 0;
};
struct DutiesReported {
  std::string node;
  uint64_t process = 0;  ///< as in its hello
  std::string reports;   ///< cluster/duty.h
};
struct PartOpened {  ///< the answer to PartOrder
  uint64_t job = 0;
  std::string node;
  Fault fault;
  bool needs_data = false;
};
struct PartReady {
  uint64_t job = 0;
  std::string node;
};
struct PartFailed {
  uint64_t job = 0;
  std::string node;
  Fault fault;
};
struct UnitDone {
  std::string node;
  uint64_t round = 0;
  uint32_t unit = 0;
  std::vector<uint64_t> losses;  ///< bits
};
struct ShardGathered {
  std::string node;
  uint64_t number = 0;  ///< as in its order
  uint32_t shard = 0;
  uint64_t step = 0;
  std::vector<uint64_t> squares;  ///< bits
};
struct ShardApplied {
  std::string node;
  uint64_t number = 0;  ///< as in its order
  uint32_t shard = 0;
  uint64_t step = 0;
};
struct CopyMade {  ///< the answer to MakeCopy, by who has it now
  std::string node;
  uint64_t number = 0;  ///< as in its order
  uint32_t shard = 0;
  uint64_t step = 0;  ///< that it begins
};
struct DisplacementHere {
  uint32_t shard = 0;
  uint64_t step = 0;  ///< that the round began with
  uint32_t attempt = 0;
};
struct PeerLost {
  std::string node, peer;
  Fault fault;
};

// Coordinator to node.
struct Renewed {  ///< the answer to Renew
  Fault fault;
  std::string certificate;  ///< PEM
};
struct PeerAnswer {  ///< the answer to AskPeer
  Fault fault;       ///< set: have nothing to do with it
};
struct Welcome {  ///< the answer to NodeHello
  Fault fault;    ///< set: the node is refused
  uint64_t epoch = 0;
};
/// A node's part in one incarnation of a job.
struct PartOrder {
  uint64_t job = 0;                 ///< names the incarnation, in every message and tensor
  std::string name;                 ///< the job's id, for people
  std::string spec;                 ///< TrainSpec as JSON
  uint64_t step = 0;                ///< steps done
  uint64_t number = 0;              ///< of the parts of the incarnation
  std::vector<std::string> owners;  ///< of each shard, as it was placed
  /// Of each shard, where more than one node holds it: ShardHolders, as they are now. Else empty.
  std::vector<std::vector<std::string>> holders;
  std::vector<Place> peers;  ///< all nodes, this one included
  bool trains = true;
  bool joining = false;  ///< the job runs already: the weights come from the shards
  uint64_t data = 0;     ///< fingerprint
  uint64_t train_bytes = 0, validation_bytes = 0;  ///< of the token files
  // When nodes keep the checkpoints:
  std::vector<std::string> copies;  ///< who keeps the copy of each shard's piece; empty: nobody
  bool best = false;                ///< the best weights so far come to their owners
};
struct GiveUnit {
  uint8_t kind = 0;  ///< WorkItem::Kind
  uint64_t round = 0;
  uint32_t unit = 0;
  uint64_t step = 0;
  uint32_t first = 0, count = 0;
  uint32_t scale = 0;  ///< bits
  uint32_t steps = 1, attempt = 0;
};
struct ApplyShard {
  uint32_t shard = 0;
  uint64_t step = 0;
  uint64_t learning_rate = 0, grad_scale = 0;  ///< bits
  int64_t update = 0;
};
struct SkipShard {
  uint32_t shard = 0;
  uint64_t step = 0;
};
struct CloseShard {  ///< RoundClose
  uint32_t shard = 0;
  uint64_t step = 0;
  uint32_t steps = 1;
  std::vector<uint32_t> attempts, shares;  ///< equally many
};
/// Answered with a tensor to the coordinator; where nodes keep the checkpoints kState with
/// ShardCopied and PieceKept, and kBest not at all.
struct CopyShard {
  enum What : uint8_t { kState, kBest, kFinal, kFinalBest };
  uint32_t shard = 0;
  uint8_t what = kState;
  uint64_t step = 0;  ///< steps done
};
struct AddPeer {
  Place place;
  bool serves = false;  ///< it may keep copies of pieces
};
struct HeldBy {  ///< ShardHolders, from now on
  std::vector<std::vector<std::string>> holders;
};
struct MakeCopy {  ///< sends a shard's state to a node that is to hold it, too
  uint32_t shard = 0;
  std::string to;
};
struct DropPeer {
  std::string node;
};
struct EndPart {};
struct Duties {        ///< all that the node is to do beside jobs
  std::string orders;  ///< cluster/duty.h
};
struct Dismissed {  ///< the node is no longer one of the cluster
  Fault fault;
};

template <class I>
typename I::result_type inspect(I& f, Place& x) {
  return f(caf::meta::type_name("fs_place"), x.node, x.host, x.port);
}
template <class I>
typename I::result_type inspect(I& f, NodeHello& x) {
  return f(caf::meta::type_name("fs_hello"), x.protocol, x.version, x.place, x.roles, x.lanes,
           x.device, x.numerics, x.process, x.ticket, x.unix_seconds);
}
template <class I>
typename I::result_type inspect(I& f, NodeTick& x) {
  return f(caf::meta::type_name("fs_tick"), x.node, x.unix_seconds, x.bytes_sent, x.bytes_received);
}
template <class I>
typename I::result_type inspect(I& f, PartOpened& x) {
  return f(caf::meta::type_name("fs_opened"), x.job, x.node, x.fault, x.needs_data);
}
template <class I>
typename I::result_type inspect(I& f, PartReady& x) {
  return f(caf::meta::type_name("fs_ready"), x.job, x.node);
}
template <class I>
typename I::result_type inspect(I& f, PartFailed& x) {
  return f(caf::meta::type_name("fs_failed"), x.job, x.node, x.fault);
}
template <class I>
typename I::result_type inspect(I& f, UnitDone& x) {
  return f(caf::meta::type_name("fs_unit_done"), x.node, x.round, x.unit, x.losses);
}
template <class I>
typename I::result_type inspect(I& f, ShardGathered& x) {
  return f(caf::meta::type_name("fs_gathered"), x.node, x.number, x.shard, x.step, x.squares);
}
template <class I>
typename I::result_type inspect(I& f, ShardApplied& x) {
  return f(caf::meta::type_name("fs_applied"), x.node, x.number, x.shard, x.step);
}
template <class I>
typename I::result_type inspect(I& f, CopyMade& x) {
  return f(caf::meta::type_name("fs_copy_made"), x.node, x.number, x.shard, x.step);
}
template <class I>
typename I::result_type inspect(I& f, HeldBy& x) {
  return f(caf::meta::type_name("fs_held_by"), x.holders);
}
template <class I>
typename I::result_type inspect(I& f, MakeCopy& x) {
  return f(caf::meta::type_name("fs_make_copy"), x.shard, x.to);
}
template <class I>
typename I::result_type inspect(I& f, PeerLost& x) {
  return f(caf::meta::type_name("fs_peer_lost"), x.node, x.peer, x.fault);
}
template <class I>
typename I::result_type inspect(I& f, Welcome& x) {
  return f(caf::meta::type_name("fs_welcome"), x.fault, x.epoch);
}
template <class I>
typename I::result_type inspect(I& f, PartOrder& x) {
  return f(caf::meta::type_name("fs_part"), x.job, x.name, x.spec, x.step, x.number, x.owners,
           x.holders, x.peers, x.trains, x.joining, x.data, x.train_bytes, x.validation_bytes,
           x.copies, x.best);
}
template <class I>
typename I::result_type inspect(I& f, GiveUnit& x) {
  return f(caf::meta::type_name("fs_give"), x.kind, x.round, x.unit, x.step, x.first, x.count,
           x.scale, x.steps, x.attempt);
}
template <class I>
typename I::result_type inspect(I& f, CloseShard& x) {
  return f(caf::meta::type_name("fs_close"), x.shard, x.step, x.steps, x.attempts, x.shares);
}
template <class I>
typename I::result_type inspect(I& f, DisplacementHere& x) {
  return f(caf::meta::type_name("fs_displaced"), x.shard, x.step, x.attempt);
}
template <class I>
typename I::result_type inspect(I& f, ApplyShard& x) {
  return f(caf::meta::type_name("fs_apply"), x.shard, x.step, x.learning_rate, x.grad_scale,
           x.update);
}
template <class I>
typename I::result_type inspect(I& f, SkipShard& x) {
  return f(caf::meta::type_name("fs_skip"), x.shard, x.step);
}
template <class I>
typename I::result_type inspect(I& f, CopyShard& x) {
  return f(caf::meta::type_name("fs_copy"), x.shard, x.what, x.step);
}
template <class I>
typename I::result_type inspect(I& f, AddPeer& x) {
  return f(caf::meta::type_name("fs_add_peer"), x.place, x.serves);
}
template <class I>
typename I::result_type inspect(I& f, DropPeer& x) {
  return f(caf::meta::type_name("fs_drop_peer"), x.node);
}
template <class I>
typename I::result_type inspect(I& f, EndPart&) {
  return f(caf::meta::type_name("fs_end_part"));
}

template <class I>
typename I::result_type inspect(I& f, Renew& x) {
  return f(caf::meta::type_name("fs_renew"), x.node, x.process, x.request);
}
template <class I>
typename I::result_type inspect(I& f, Renewed& x) {
  return f(caf::meta::type_name("fs_renewed"), x.fault, x.certificate);
}
template <class I>
typename I::result_type inspect(I& f, AskPeer& x) {
  return f(caf::meta::type_name("fs_ask_peer"), x.cluster, x.node, x.key);
}
template <class I>
typename I::result_type inspect(I& f, PeerAnswer& x) {
  return f(caf::meta::type_name("fs_peer_answer"), x.fault);
}
template <class I>
typename I::result_type inspect(I& f, Duties& x) {
  return f(caf::meta::type_name("fs_duties"), x.orders);
}
template <class I>
typename I::result_type inspect(I& f, DutiesReported& x) {
  return f(caf::meta::type_name("fs_duties_reported"), x.node, x.process, x.reports);
}
template <class I>
typename I::result_type inspect(I& f, Dismissed& x) {
  return f(caf::meta::type_name("fs_dismissed"), x.fault);
}

/// Lets an actor system read and write all of the above.
void add_message_types(caf::actor_system_config& config);

inline std::vector<uint64_t> to_bits(const std::vector<double>& values) {
  std::vector<uint64_t> bits;
  for (const double value : values) bits.push_back(std::bit_cast<uint64_t>(value));
  return bits;
}
inline std::vector<double> from_bits(const std::vector<uint64_t>& bits) {
  std::vector<double> values;
  for (const uint64_t word : bits) values.push_back(std::bit_cast<double>(word));
  return values;
}

/// Urgency of tensors that no step waits for.
inline constexpr uint32_t kAfterTheStep = 1 << 20;

/// Kinds of a BulkTag, whose `job` is PartOrder::job.
enum class BulkKind : uint64_t {
  kGradient = 1,   ///< step, key: first << 32 | count; one message a shard, which is kind's upper
                   ///< half. With local steps a displacement of the round that began with the step:
                   ///< attempt << 32 | count
  kWeights = 2,    ///< step, key: shard
  kMoments = 3,    ///< m and v of a shard; key: shard
  kState = 4,      ///< weights, m and v of a shard, to the coordinator; step, key: shard
  kBest = 5,       ///< weights of a shard, to the coordinator or back; step, key: shard
  kTrainData = 6,  ///< a token file
  kValidationData = 7,  ///< a token file
  kWeightFrame = 8,     ///< step, key: shard; from its owner
  kGradientFrame = 9,   ///< as kGradient
  kCopy = 10,       ///< weights, m and v of a shard, to a node that is to hold it; step, key: shard
  kFinal = 20,      ///< weights of a shard as the job ends, to the coordinator; key: shard
  kPiece = 21,      ///< of a checkpoint, to the coordinator; key: which
  kPieceCopy = 22,  ///< weights, m, v and perhaps the best of a shard; step, key: shard
};

}  // namespace fastserve::wire_messages

namespace fastserve {

/// A node's part in one job, as the coordinator sees it.
using PartActor = caf::typed_actor<
    caf::reacts_to<wire_messages::GiveUnit>, caf::reacts_to<wire_messages::ApplyShard>,
    caf::reacts_to<wire_messages::CloseShard>, caf::reacts_to<wire_messages::SkipShard>,
    caf::reacts_to<wire_messages::CopyShard>, caf::reacts_to<wire_messages::AddPeer>,
    caf::reacts_to<wire_messages::DropPeer>, caf::reacts_to<wire_messages::HeldBy>,
    caf::reacts_to<wire_messages::MakeCopy>, caf::reacts_to<wire_messages::EndPart>>;
/// The coordinator's side of one incarnation of a job, as its parts see it.
using ConductorActor = caf::typed_actor<
    caf::reacts_to<wire_messages::PartOpened, PartActor>, caf::reacts_to<wire_messages::PartReady>,
    caf::reacts_to<wire_messages::PartFailed>, caf::reacts_to<wire_messages::UnitDone>,
    caf::reacts_to<wire_messages::ShardGathered>, caf::reacts_to<wire_messages::DisplacementHere>,
    caf::reacts_to<wire_messages::ShardApplied>, caf::reacts_to<wire_messages::CopyMade>,
    caf::reacts_to<wire_messages::PeerLost>, caf::reacts_to<wire_messages::ShardCopied>,
    caf::reacts_to<wire_messages::PieceKept>>;
/// A node, as the coordinator sees it.
using NodeActor = PieceShelfActor::extend<caf::reacts_to<wire_messages::PartOrder, ConductorActor>,
                                          caf::reacts_to<wire_messages::DropPeer>,
                                          caf::reacts_to<wire_messages::Duties>,
                                          caf::reacts_to<wire_messages::Dismissed>>;
/// A coordinator, as its nodes see it.
using RegistryActor = caf::typed_actor<
    caf::replies_to<wire_messages::NodeHello, NodeActor>::with<wire_messages::Welcome>,
    caf::replies_to<wire_messages::Renew>::with<wire_messages::Renewed>,
    caf::replies_to<wire_messages::AskPeer>::with<wire_messages::PeerAnswer>,
    caf::reacts_to<wire_messages::NodeTick>, caf::reacts_to<wire_messages::DutiesReported>>;

}  // namespace fastserve
