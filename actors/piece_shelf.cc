#include "actors/piece_shelf.h"

#include <fmt/format.h>

#include <algorithm>

namespace fastserve {

using namespace wire_messages;

namespace {

Status send(const NodeParts& node, const SendPiece& order) {
  if (!node.hub->connected(kCoordinatorPeer))
    return Error{ErrorCode::kUnavailable, "has no lane to the coordinator yet", "node " + node.name,
                 ""};
  auto read = node.pieces->read(to_name(order.job, order.piece), order.hash);
  if (!read.ok()) {
    node.log.warning(read.error().message());
    return std::move(read).error();
  }
  const Piece& piece = *read;
  std::vector<BulkSource> parts;
  for (const auto run : {piece.weights, piece.m, piece.v, piece.best})
    if (!run.empty()) parts.push_back({std::as_bytes(run), piece.file});
  node.hub->send(kCoordinatorPeer,
                 {static_cast<uint64_t>(BulkKind::kPiece), order.tag_job,
                  static_cast<uint64_t>(piece.name.step), order.tag_key},
                 std::move(parts), kAfterTheStep);
  return {};
}

}  // namespace

PieceShelfActor::behavior_type piece_shelf(PieceShelfActor::pointer,
                                           std::shared_ptr<const NodeParts> node) {
  return {
      [=](const AskPieces& ask) {
        PiecesHere here;
        for (const PieceName& name : node->pieces->list(ask.job))
          here.pieces.push_back(to_item(name));
        return here;
      },
      [=](const SendPiece& order) {
        const Status sent = send(*node, order);
        return PieceSent{sent.ok() ? Fault() : to_fault(sent.error())};
      },
      [=](const KeepPieces& order) {
        if (order.last_incarnation == 0) return node->pieces->remove(order.job);
        std::vector<PieceStore::Set> kept;
        for (size_t i = 0; i < std::min(order.incarnations.size(), order.steps.size()); i++)
          kept.emplace_back(order.incarnations[i], order.steps[i]);
        node->pieces->keep(order.job, kept, {order.last_incarnation, order.last_step});
      },
      [=](const KeepJobs& order) { node->pieces->keep_jobs(order.jobs); },
  };
}

}  // namespace fastserve
