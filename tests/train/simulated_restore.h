// Checkpoints in pieces on a simulated cluster's disks: published, pruned, and found again. See
// cluster_simulator.h.
#pragma once

#include "cluster_simulator.h"

namespace fastserve::simulated {

inline void Cluster::look_at_pieces() {
  auto ended = coordinator_.pieces->take_ended(false);
  if (!ended) return;
  coordinator_.writing = true;
  const std::weak_ptr<Conductor> from = coordinator_.wanted_by;
  world_.post(coordinator_.process, world_.delay(1ms, 100ms), [this, from, ended = *ended] {
    coordinator_.writing = false;
    publish(ended);
    const auto conductor = from.lock();
    if (conductor == nullptr || conductor->closed()) return;
    conductor->written(ended.ok() ? Status() : Status(ended.error()));
  });
}

inline void Cluster::publish(const Result<PieceSet>& pieces) {
  const auto synced = coordinator_.ledger->sync();
  if (!common_.broken.ledger_unsynced) synced_ = std::filesystem::file_size(ledger_path_);
  say(pieces.ok() ? "a checkpoint in pieces is published" : "a checkpoint in pieces is refused");
  if (pieces.ok() && synced.ok()) {
    std::erase_if(manifests_, [&](const Manifest& old) { return old.set.step == pieces->step; });
    manifests_.insert(manifests_.begin(), {coordinator_.wanted, *pieces});
    std::ranges::sort(manifests_, std::greater<>(), [](const auto& at) { return at.set.step; });
    if (manifests_.size() > 2) manifests_.resize(2);
  }
  std::vector<std::pair<uint64_t, int64_t>> kept;
  for (const Manifest& manifest : manifests_)
    kept.emplace_back(manifest.set.incarnation, manifest.set.step);
  const std::pair last(epoch_ << 32 | coordinator_.incarnations, coordinator_.wanted.steps_done);
  for (const auto& [name, known] : coordinator_.table)
    known.control.send([known, kept, last] {
      if (const auto node = known.node.lock()) node->disk->keep(kept, last);
    });
}

inline Saved Cluster::assembled(const Manifest& manifest) {
  Saved saved{manifest.state, {}, {}, {}};
  for (auto* all : {&saved.weights, &saved.m, &saved.v}) all->resize(FakeBackend::kElements);
  for (size_t i = 0; i < manifest.set.pieces.size(); i++) {
    const PieceName name = manifest.set.name("job", i);
    std::shared_ptr<const ShardState> state;
    for (const auto& [node, known] : coordinator_.table)
      if (const auto there = known.node.lock(); there && there->disk->pieces.contains(name))
        state = there->disk->pieces.at(name);
    if (hash_of(*state) != manifest.set.pieces[i].hash) trouble_ = "a piece has other bits";
    const auto at = static_cast<ptrdiff_t>(name.begin);
    std::copy(state->weights.begin(), state->weights.end(), saved.weights.begin() + at);
    std::copy(state->m.begin(), state->m.end(), saved.m.begin() + at);
    std::copy(state->v.begin(), state->v.end(), saved.v.begin() + at);
  }
  return saved;
}

/// Nothing: somebody is waited for.
inline std::optional<Saved> Cluster::restored() {
  if (!common_.node_checkpoints || manifests_.empty()) return disk_;
  PieceHoldings holdings;
  for (const auto& [name, known] : coordinator_.table)
    if (const auto node = known.node.lock()) holdings.connected(name, node->disk->names());
  std::vector<PieceVerdict> verdicts;
  for (const Manifest& manifest : manifests_) {
    verdicts.push_back(judge("job", manifest.set, holdings));
    // One disk is lost at most, and each piece is on two where there were two.
    const auto once = [](const PieceSet::Piece& piece) { return piece.holders.size() == 1; };
    const bool may_be_lost = disks_lost_ > 0 && std::ranges::any_of(manifest.set.pieces, once);
    if (verdicts.back().kind == PieceVerdict::Kind::kLost && !may_be_lost)
      trouble_ = "a published checkpoint is not there: " + verdicts.back().lost;
  }
  if (!coordinator_.looking_since) coordinator_.looking_since = world_.now();
  const CheckpointChoice choice =
      choose_checkpoint(verdicts, world_.now() - *coordinator_.looking_since < 10s);
  if (choice.kind == CheckpointChoice::Kind::kWait) return std::nullopt;
  if (choice.kind == CheckpointChoice::Kind::kLost) {
    lost_ = finished_ = true;
    return std::nullopt;
  }
  coordinator_.looking_since.reset();
  covered.older += choice.index > 0;
  return assembled(manifests_[choice.index]);
}

}  // namespace fastserve::simulated
