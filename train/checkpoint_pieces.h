// A checkpoint in pieces on many nodes: when it is complete, who has what of it, which one to take.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/json.h"

namespace fastserve {

/// What one shard held after `step` steps: the elements [begin, end) of weights and optimiser.
/// Pieces of one checkpoint are those that one incarnation of the job wrote at one step.
struct PieceName {
  std::string job;
  uint64_t incarnation = 0;
  int64_t step = 0;
  uint64_t begin = 0, end = 0;
  auto operator<=>(const PieceName&) const = default;
};

/// What a node says of a piece that it was to keep.
struct PieceReport {
  PieceName piece;
  std::string node;
  bool owner = false;     ///< the shard is the node's; else it keeps a copy
  std::string copied_to;  ///< of an owner: who keeps the copy; empty: nobody
  std::string hash;
  std::optional<Error> error;  ///< it is not kept
};

/// All pieces of one checkpoint, as the coordinator keeps them in its manifest.
struct PieceSet {
  struct Piece {
    uint64_t begin = 0, end = 0;
    std::string hash;                  ///< of the file
    std::vector<std::string> holders;  ///< the owner first
  };
  uint64_t incarnation = 0;
  int64_t step = 0;
  bool best = false;          ///< with the weights of the best evaluation
  std::vector<Piece> pieces;  ///< from element 0 on, without gaps

  uint64_t elements() const { return pieces.empty() ? 0 : pieces.back().end; }
  PieceName name(const std::string& job, size_t piece) const {
    return {job, incarnation, step, pieces[piece].begin, pieces[piece].end};
  }
  Json to_json() const;
  /// kCorrupt names what cannot be.
  static Result<PieceSet> from_json(const Json& json, const std::string& where);
};

/// Gathers what nodes report of one checkpoint.
///
/// Threads:  not thread-safe.
/// Promises: complete() only when each element is in a piece that its owner, and the node that it
///           named for the copy, have on their disks, as the same bytes.
class PieceCollection {
 public:
  PieceCollection(uint64_t incarnation, int64_t step, uint64_t elements)
      : incarnation_(incarnation), step_(step), elements_(elements) {}

  bool is_of(const PieceName& piece) const {
    return piece.incarnation == incarnation_ && piece.step == step_;
  }
  /// Reports of other checkpoints and repeats change nothing.
  void add(const PieceReport& report);
  /// Why there will be no such checkpoint: the first node that could not, or copies that differ.
  const std::optional<Error>& error() const { return error_; }
  bool complete() const;
  bool has(uint64_t begin, const std::string& node) const;
  /// Nodes that were to keep a copy and have not said that they do.
  std::set<std::string> copies_missing() const;
  /// Requires complete().
  PieceSet set(bool best) const;

 private:
  struct Known {
    uint64_t end = 0;
    std::string owner, copied_to;               // once the owner has reported
    std::map<std::string, std::string> hashes;  // by node
  };
  bool whole(const Known& piece) const;

  uint64_t incarnation_;
  int64_t step_;
  uint64_t elements_;
  std::map<uint64_t, Known> pieces_;  // by begin
  std::optional<Error> error_;
};

/// Which checkpoint of a job is wanted, and what has been said of it and of those around it.
///
/// Threads:  not thread-safe.
class PieceCollector {
 public:
  PieceCollector(std::string job, uint64_t elements) : job_(std::move(job)), elements_(elements) {}

  /// From now on this one, and none that was wanted before. Reports of it may have come already.
  void want(uint64_t incarnation, int64_t step) { wanted_ = Name{incarnation, step}; }
  /// Which pieces, by their begin, an incarnation's nodes will report.
  void expect(std::vector<std::pair<uint64_t, std::string>> reports) {
    expected_ = std::move(reports);
  }
  /// Nodes that have yet to report some of what is wanted.
  std::set<std::string> missing();
  void add(const PieceReport& report);
  /// A node has left the job, perhaps to come back; a copy on its way there is lost.
  void lost(const std::string& node) { lost_.insert(node); }
  /// Waits no longer for copies on nodes that have been lost since the last checkpoint ended.
  void give_up_lost();
  /// What is wanted, once it is complete, or why it never will be; then nothing is wanted.
  std::optional<Result<PieceSet>> take_ended(bool best);

 private:
  using Name = std::pair<uint64_t, int64_t>;
  PieceCollection& collection(Name name);

  const std::string job_;
  const uint64_t elements_;
  std::optional<Name> wanted_;
  std::vector<std::pair<uint64_t, std::string>> expected_;
  std::set<std::string> lost_;
  std::map<Name, PieceCollection> all_;
};

/// Who keeps the copy of each shard: the next node by name after its owner, so that what a node
/// takes on follows from what others have. Empty where there is one node alone, or `copies` is 1.
std::vector<std::string> copy_places(const std::vector<std::string>& owners, int copies);

/// What connected nodes have on their disks.
///
/// Threads:  not thread-safe.
class PieceHoldings {
 public:
  void connected(const std::string& node, const std::vector<PieceName>& pieces);
  /// It turned out not to be what it should: nobody is asked for it there again.
  void damaged(const std::string& node, const PieceName& piece) { damaged_.emplace(node, piece); }
  /// Forgets what nodes have, but not what is damaged.
  void ask_again() { nodes_.clear(); }
  /// Connected nodes with the piece: those of `first` before others.
  std::vector<std::string> holders(const PieceName& piece,
                                   const std::vector<std::string>& first) const;
  bool is_connected(const std::string& node) const { return nodes_.contains(node); }

 private:
  std::map<std::string, std::set<PieceName>> nodes_;
  std::set<std::pair<std::string, PieceName>> damaged_;
};

/// Whether a checkpoint can be had.
struct PieceVerdict {
  enum class Kind { kWhole, kAway, kLost };
  Kind kind = Kind::kWhole;
  std::set<std::string> away;  ///< kAway: nodes that are not connected and would have the rest
  std::string lost;            ///< kLost: which elements, and who had them
};
PieceVerdict judge(const std::string& job, const PieceSet& set, const PieceHoldings& holdings);

/// Which of a job's checkpoints to go on from.
struct CheckpointChoice {
  enum class Kind { kTake, kWait, kLost };
  Kind kind = Kind::kLost;
  size_t index = 0;            ///< kTake
  std::set<std::string> away;  ///< kWait: for whom
};
/// `verdicts`: newest first. While `patient` a newer one whose nodes may come back is waited for
/// although an older one is there; one that is lost for good never holds up the next.
CheckpointChoice choose_checkpoint(const std::vector<PieceVerdict>& verdicts, bool patient);

}  // namespace fastserve
