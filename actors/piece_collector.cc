#include "actors/piece_collector.h"

#include <optional>

namespace fastserve {

using namespace messages;
using namespace wire_messages;

namespace {

class Publisher {
 public:
  Publisher(PieceCollectorActor::pointer self, PieceCollectorParts parts)
      : self_(self), parts_(std::move(parts)), pieces_(parts_.job, parts_.elements) {}

  void write(const WriteCheckpoint& order, CoordinatorActor asked_by) {
    wanted_ = order;
    asked_by_ = std::move(asked_by);
    pieces_.want(order.incarnation, order.state.steps_done);
    look();
  }

  void kept(const PieceKept& kept) {
    PieceReport report{to_name(parts_.job, kept.piece), kept.node, kept.owner, kept.copied_to,
                       kept.hash, std::nullopt};
    if (!kept.fault.ok()) report.error = to_error(kept.fault);
    pieces_.add(report);
    look();
  }

 private:
  void look() {
    const auto ended = pieces_.take_ended(wanted_.has_best);
    if (!ended) return;
    Status status = ended->ok() ? publish(**ended) : Status(ended->error());
    KeepPieces keep{parts_.job, {}, {}, wanted_.incarnation, wanted_.state.steps_done};
    for (const auto& [incarnation, step] : parts_.directory->kept_pieces()) {
      keep.incarnations.push_back(incarnation);
      keep.steps.push_back(step);
    }
    parts_.keep(std::move(keep));
    self_->send(asked_by_, CheckpointWritten{std::make_shared<const Status>(std::move(status))});
    asked_by_ = nullptr;
  }

  Status publish(const PieceSet& pieces) {
    if (parts_.ledger != nullptr) FS_TRY(parts_.ledger->sync());
    parts_.header.state = wanted_.state;
    return parts_.directory->write(parts_.header, pieces);
  }

  PieceCollectorActor::pointer self_;
  PieceCollectorParts parts_;
  PieceCollector pieces_;
  WriteCheckpoint wanted_;
  CoordinatorActor asked_by_;
};

}  // namespace

PieceCollectorActor::behavior_type piece_collector(PieceCollectorActor::pointer self,
                                                   PieceCollectorParts parts) {
  const auto collector = std::make_shared<Publisher>(self, std::move(parts));
  return {
      [=](const WriteCheckpoint& order) {
        collector->write(order, caf::actor_cast<CoordinatorActor>(self->current_sender()));
      },
      [](const Settle&) { return true; },
      [=](const PieceKept& kept) { collector->kept(kept); },
  };
}

}  // namespace fastserve
