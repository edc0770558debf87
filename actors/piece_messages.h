// What a coordinator and its nodes say to each other about pieces of checkpoints. For actors/*.cc
// only.
#pragma once

#include <string>
#include <vector>

#include "actors/wire_fault.h"
#include "train/checkpoint_pieces.h"

namespace fastserve::wire_messages {

/// A PieceName, but for its job.
struct PieceItem {
  uint64_t incarnation = 0;
  int64_t step = 0;
  uint64_t begin = 0, end = 0;
};
inline PieceItem to_item(const PieceName& name) {
  return {name.incarnation, name.step, name.begin, name.end};
}
inline PieceName to_name(const std::string& job, const PieceItem& item) {
  return {job, item.incarnation, item.step, item.begin, item.end};
}

// Coordinator to node.
struct AskPieces {
  std::string job;
};
struct PiecesHere {  ///< the answer to AskPieces
  std::vector<PieceItem> pieces;
};
struct SendPiece {  ///< as a tensor to the coordinator
  std::string job;
  PieceItem piece;
  std::string hash;
  uint64_t tag_job = 0, tag_key = 0;
};
struct PieceSent {  ///< the answer to SendPiece: the tensor is on its way
  Fault fault;
};
/// Of the job's pieces those of these checkpoints stay, and what is newer than `last_...`.
struct KeepPieces {
  std::string job;
  std::vector<uint64_t> incarnations;
  std::vector<int64_t> steps;  ///< equally many
  uint64_t last_incarnation = 0;
  int64_t last_step = 0;
};
struct KeepJobs {  ///< pieces of other jobs can go
  std::vector<std::string> jobs;
};

// A node's part in a job to the job's conductor.
struct ShardCopied {  ///< what it is to keep of the shard is in memory: the next step may change it
  uint32_t shard = 0;
  uint64_t step = 0;
};
struct PieceKept {  ///< PieceReport
  uint64_t job = 0;
  std::string node;
  PieceItem piece;
  bool owner = false;
  std::string copied_to, hash;
  Fault fault;
};

template <class I>
typename I::result_type inspect(I& f, PieceItem& x) {
  return f(caf::meta::type_name("fs_piece_item"), x.incarnation, x.step, x.begin, x.end);
}
template <class I>
typename I::result_type inspect(I& f, AskPieces& x) {
  return f(caf::meta::type_name("fs_ask_pieces"), x.job);
}
template <class I>
typename I::result_type inspect(I& f, PiecesHere& x) {
  return f(caf::meta::type_name("fs_pieces_here"), x.pieces);
}
template <class I>
typename I::result_type inspect(I& f, SendPiece& x) {
  return f(caf::meta::type_name("fs_send_piece"), x.job, x.piece, x.hash, x.tag_job, x.tag_key);
}
template <class I>
typename I::result_type inspect(I& f, PieceSent& x) {
  return f(caf::meta::type_name("fs_piece_sent"), x.fault);
}
template <class I>
typename I::result_type inspect(I& f, KeepPieces& x) {
  return f(caf::meta::type_name("fs_keep_pieces"), x.job, x.incarnations, x.steps,
           x.last_incarnation, x.last_step);
}
template <class I>
typename I::result_type inspect(I& f, KeepJobs& x) {
  return f(caf::meta::type_name("fs_keep_jobs"), x.jobs);
}
template <class I>
typename I::result_type inspect(I& f, ShardCopied& x) {
  return f(caf::meta::type_name("fs_shard_copied"), x.shard, x.step);
}
template <class I>
typename I::result_type inspect(I& f, PieceKept& x) {
  return f(caf::meta::type_name("fs_piece_kept"), x.job, x.node, x.piece, x.owner, x.copied_to,
           x.hash, x.fault);
}

}  // namespace fastserve::wire_messages

namespace fastserve {

/// A node's disk, as far as pieces of checkpoints lie there.
using PieceShelfActor =
    caf::typed_actor<caf::replies_to<wire_messages::AskPieces>::with<wire_messages::PiecesHere>,
                     caf::replies_to<wire_messages::SendPiece>::with<wire_messages::PieceSent>,
                     caf::reacts_to<wire_messages::KeepPieces>,
                     caf::reacts_to<wire_messages::KeepJobs>>;

}  // namespace fastserve
