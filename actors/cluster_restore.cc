#include "actors/cluster_restore.h"

#include <fmt/format.h>

#include <thread>

namespace fastserve {
namespace {

constexpr auto kLook = std::chrono::milliseconds(300);
/// Processes that were killed, and hosts that are started again, are back by then.
constexpr auto kPatience = std::chrono::seconds(10);

}  // namespace

void CheckpointRestore::load_all() {
  for (const Path& path : directory_.all()) {
    auto checkpoint = CheckpointDirectory::load(path);
    if (!checkpoint.ok()) {
      around_.fetching.log.warning("a damaged checkpoint is passed over: " +
                                   checkpoint.error().message());
      continue;
    }
    all_.push_back(std::move(*checkpoint));
    if (!all_.back().pieces) return;
  }
}

std::vector<PieceVerdict> CheckpointRestore::verdicts(const NodesByName& nodes) {
  const auto in_pieces = [](const Checkpoint& checkpoint) { return checkpoint.pieces.has_value(); };
  if (std::ranges::any_of(all_, in_pieces))
    ask_for_pieces(*around_.fetching.actors, nodes, job_, holdings_);
  std::vector<PieceVerdict> verdicts;
  for (const Checkpoint& checkpoint : all_) {
    const int64_t step = checkpoint.header.state.steps_done;
    verdicts.push_back(checkpoint.pieces ? judge(job_, *checkpoint.pieces, holdings_)
                                         : PieceVerdict());
    if (verdicts.back().kind == PieceVerdict::Kind::kLost && said_lost_.insert(step).second)
      around_.fetching.log.warning(
          fmt::format("job {}: the checkpoint of step {} is lost: nobody has {}; an older one is "
                      "looked for",
                      job_, step, verdicts.back().lost));
  }
  return verdicts;
}

Error CheckpointRestore::lost(const std::vector<PieceVerdict>& verdicts) const {
  std::string what = "cannot go on: none of its checkpoints can be had";
  for (size_t i = 0; i < verdicts.size(); i++)
    what += fmt::format("{} of step {} nobody has {}", i == 0 ? ":" : ",",
                        all_[i].header.state.steps_done, verdicts[i].lost);
  return {ErrorCode::kNotFound, what, "job " + job_,
          fmt::format("put those nodes' disks back (ROOT/node-checkpoints), then fsctl jobs resume "
                      "{}; or start a new job",
                      job_)};
}

bool CheckpointRestore::fetch(Checkpoint& checkpoint, const NodesByName& nodes) {
  auto& fetching = fetching_[checkpoint.pieces->step];
  if (fetching == nullptr)
    fetching = std::make_unique<PieceFetch>(around_.fetching, job_, *checkpoint.pieces);
  if (!fetching->fetch(nodes, holdings_)) return false;
  fetching->move_into(checkpoint);
  return true;
}

Result<std::optional<Checkpoint>> CheckpointRestore::newest() {
  load_all();
  if (all_.empty()) return std::optional<Checkpoint>();
  const Nanoseconds until = around_.clock->now() + kPatience;
  while (!around_.fetching.cancelled()) {
    const NodesByName nodes = around_.nodes();
    const auto found = verdicts(nodes);
    const CheckpointChoice choice = choose_checkpoint(found, around_.clock->now() < until);
    if (choice.kind == CheckpointChoice::Kind::kLost) return lost(found);
    if (choice.kind == CheckpointChoice::Kind::kTake) {
      Checkpoint& taken = all_[choice.index];
      if (!taken.pieces || fetch(taken, nodes)) return std::optional(std::move(taken));
    } else {
      around_.say(fmt::format("node{} {}, with pieces of its checkpoint",
                              choice.away.size() > 1 ? "s" : "", fmt::join(choice.away, ", ")));
    }
    std::this_thread::sleep_for(kLook);
  }
  return Error{ErrorCode::kCancelled, "stopped while it looked for its checkpoint", "job " + job_,
               ""};
}

}  // namespace fastserve
