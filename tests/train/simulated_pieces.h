// Pieces of checkpoints in a simulated cluster: the nodes' disks, and what is published of what
// lies there. Follows actors/piece_keeper.cc, piece_collector.cc and cluster_restore.cc.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/hash.h"
#include "train/checkpoint_pieces.h"
#include "train/parameter_shard.h"

namespace fastserve::simulated {

/// Of a node's name: it outlives the node's processes.
struct Disk {
  std::map<PieceName, std::shared_ptr<const ShardState>> pieces;

  std::vector<PieceName> names() const {
    std::vector<PieceName> all;
    for (const auto& [name, state] : pieces) all.push_back(name);
    return all;
  }
  void keep(const std::vector<std::pair<uint64_t, int64_t>>& kept,
            std::pair<uint64_t, int64_t> last) {
    std::erase_if(pieces, [&](const auto& entry) {
      const std::pair set(entry.first.incarnation, entry.first.step);
      return set <= last && std::ranges::find(kept, set) == kept.end();
    });
  }
};

inline std::string hash_of(const ShardState& state) {
  uint64_t hash = state.offset;
  for (const auto* run : {&state.weights, &state.m, &state.v})
    hash = hash64(std::as_bytes(std::span(*run)), hash);
  return std::to_string(hash);
}

}  // namespace fastserve::simulated
