// Publishes checkpoints whose pieces nodes keep. For actors/ alone.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "actors/cluster_messages.h"
#include "actors/messages.h"
#include "base/log.h"
#include "train/ledger_file.h"

namespace fastserve::messages {

struct ExpectPieces {  // of an incarnation: which pieces its nodes will report, by their begin
  std::vector<std::pair<uint64_t, std::string>> reports;
};

struct NodeLeft {  // an incarnation, which goes on
  std::string node;
};

}  // namespace fastserve::messages

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::NodeLeft)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(fastserve::messages::ExpectPieces)

namespace fastserve {

/// A checkpoint writer that hears of pieces instead of getting floats.
using PieceCollectorActor = CheckpointWriterActor::extend<
    caf::reacts_to<wire_messages::PieceKept>, caf::reacts_to<messages::ExpectPieces>,
    caf::reacts_to<messages::NodeLeft>, caf::reacts_to<messages::Tick>>;

struct PieceCollectorParts {
  std::shared_ptr<CheckpointDirectory> directory;
  CheckpointHeader header;
  std::shared_ptr<LedgerFile> ledger;  ///< may be null
  std::string job;
  uint64_t elements = 0;
  Log log;
  /// Tells every node which pieces of the job are still wanted.
  std::function<void(wire_messages::KeepPieces)> keep;
};

/// A checkpoint is published, and its WriteCheckpoint answered, once every piece of it is where it
/// is to be, and what it counts on is on disk in the ledger. It waits for the disk: spawn it
/// detached.
PieceCollectorActor::behavior_type piece_collector(PieceCollectorActor::pointer self,
                                                   PieceCollectorParts parts);

}  // namespace fastserve
