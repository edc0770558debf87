#include "actors/piece_collector.h"

#include <fmt/format.h>

#include <optional>

#include "base/clock.h"

namespace fastserve {

using namespace messages;
using namespace wire_messages;

namespace {

constexpr auto kSlowDisk = std::chrono::seconds(5);

class Publisher {
 public:
  Publisher(PieceCollectorActor::pointer self, PieceCollectorParts parts)
      : self_(self), parts_(std::move(parts)), pieces_(parts_.job, parts_.elements) {}

  void write(const WriteCheckpoint& order, CoordinatorActor asked_by) {
    wanted_ = order;
    asked_by_ = std::move(asked_by);
    pieces_.want(order.incarnation, order.state.steps_done);
    wanted_since_ = clock_.now();
    self_->delayed_send(self_, kSlowDisk, Tick{});
    look();
  }

  void expect(const ExpectPieces& expected) { pieces_.expect(expected.reports); }

  void kept(const PieceKept& kept) {
    PieceReport report{to_name(parts_.job, kept.piece),
                       kept.node,
                       kept.owner,
                       kept.copied_to,
                       kept.hash,
                       std::nullopt};
    if (!kept.fault.ok()) report.error = to_error(kept.fault);
    pieces_.add(report);
    look();
  }

  void left(const std::string& node) { pieces_.lost(node); }

  void tick() {
    if (asked_by_ == nullptr || clock_.now() - wanted_since_ < kSlowDisk) return;
    self_->delayed_send(self_, kSlowDisk, Tick{});
    say_slow();
    pieces_.give_up_lost();
    look();
  }

 private:
  void say_slow() {
    const auto missing = pieces_.missing();
    const int64_t step = wanted_.state.steps_done;
    if (missing.empty() || std::exchange(said_slow_, step) == step) return;
    parts_.log.warning(fmt::format(
        "job {}: node{} {} yet to write pieces of the checkpoint of step {}: the disk there is "
        "slow or stuck; the job goes on, and waits for it when the next checkpoint is due",
        parts_.job, missing.size() > 1 ? "s" : "",
        fmt::format("{} {}", fmt::join(missing, ", "), missing.size() > 1 ? "have" : "has"), step));
  }

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
  const SystemClock clock_;
  WriteCheckpoint wanted_;
  Nanoseconds wanted_since_{0};
  int64_t said_slow_ = -1;  // of which step
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
      [=](const ExpectPieces& expected) { collector->expect(expected); },
      [=](const NodeLeft& left) { collector->left(left.node); },
      [=](const Tick&) { collector->tick(); },
  };
}

}  // namespace fastserve
