// Brings a checkpoint's pieces from nodes' disks to the coordinator. For actors/ alone.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "actors/cluster_messages.h"
#include "base/log.h"
#include "net/lane_hub.h"
#include "train/checkpoint.h"

namespace fastserve {

/// Whom to ask, by name.
using NodesByName = std::vector<std::pair<std::string, NodeActor>>;

/// What the nodes have of a job. Nodes that do not answer in seconds count as not connected.
void ask_for_pieces(caf::actor_system& actors, const NodesByName& nodes, const std::string& job,
                    PieceHoldings& holdings);

/// One checkpoint on its way.
///
/// Owns:     the floats of all elements.
/// Threads:  one caller.
/// Promises: each piece was checked against its hash where it was read.
class PieceFetch {
 public:
  struct Around {
    caf::actor_system* actors;
    LaneHub* hub;
    std::function<uint64_t()> next_tag;  ///< a job id for tensors that nobody else uses
    std::function<bool()> cancelled;
    Log log;
  };
  PieceFetch(Around around, std::string job, PieceSet set);

  /// Asks for what is not here yet. False when something is missing still: a node is lost, or what
  /// it has is damaged, which `holdings` then knows.
  bool fetch(const NodesByName& nodes, PieceHoldings& holdings);
  /// Requires that fetch() was successful; once.
  void move_into(Checkpoint& checkpoint);

 private:
  class Sink;
  struct Floats {
    std::vector<float> weights, m, v, best;
  };

  const Around around_;
  const std::string job_;
  const PieceSet set_;
  const std::shared_ptr<Floats> floats_;
  std::vector<bool> here_;  // by piece
};

}  // namespace fastserve
