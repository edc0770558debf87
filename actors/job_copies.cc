#include "actors/job_copies.h"

namespace fastserve {

using namespace messages;
using namespace wire_messages;

JobCopies::JobCopies(Around around, ShardHolders holders, StepId first, int replicas)
    : around_(std::move(around)),
      replicas_(replicas),
      copies_(std::move(holders), first),
      maker_(copies_, replicas) {}

std::vector<PartActor> JobCopies::parts_of(uint32_t shard) const {
  std::vector<PartActor> parts;
  for (const std::string& node : holders()[shard])
    if (const PartActor part = around_.part(node)) parts.push_back(part);
  return parts;
}

std::vector<RemoteShardActor> JobCopies::begin(CoordinatorActor coordinator) {
  coordinator_ = std::move(coordinator);
  for (uint32_t i = 0; i < holders().size(); i++)
    proxies_.push_back(around_.self->system().spawn(remote_shard, i, parts_of(i)));
  return proxies_;
}

void JobCopies::tell(ShardCopies::Gathered whole) {
  around_.self->send(coordinator_, Gathered{{whole.shard}, whole.step, std::move(whole.squares)});
}

Status JobCopies::gathered(const ShardGathered& said) {
  FS_ASSIGN(auto whole,
            copies_.gathered(said.node, said.shard, {said.step}, from_bits(said.squares)));
  if (whole) tell(std::move(*whole));
  return {};
}

void JobCopies::applied(const ShardApplied& said) {
  if (copies_.applied(said.node, said.shard, {said.step}))
    around_.self->send(coordinator_, ShardReady{{said.shard}, {said.step}});
}

bool JobCopies::takes(const StateHere& here) {
  return replicas_ == 0 || copies_.takes(here.shard, here.part->step, here.best);
}

size_t JobCopies::lose(const std::string& node) {
  ShardCopies::Loss loss = copies_.lose(node);
  if (loss.copies > 0) {
    around_.tell_all();
    for (uint32_t i = 0; i < proxies_.size(); i++)
      around_.self->send(proxies_[i], messages::PartsNow{parts_of(i)});
  }
  for (auto& whole : loss.gathered) tell(std::move(whole));
  for (const auto& ready : loss.ready)
    around_.self->send(coordinator_, ShardReady{{ready.shard}, ready.step});
  maker_.lost(node, loss);
  look_at_hold();
  came();
  return loss.moved.size();
}

void JobCopies::came() {
  if (coordinator_ && maker_.wants_hold(around_.able()))
    around_.self->send(coordinator_, Hold{true});
}

void JobCopies::held() {
  for (const ShardCopies::Seed& seed : maker_.held(around_.able()))
    if (const PartActor part = around_.part(seed.from))
      around_.self->send(part, MakeCopy{seed.shard, seed.to});
  look_at_hold();
}

void JobCopies::made(const CopyMade& said) {
  if (maker_.made(said.node, said.shard, {said.step})) look_at_hold();
}

void JobCopies::look_at_hold() {
  if (!maker_.over()) return;
  around_.tell_all();
  for (uint32_t i = 0; i < proxies_.size(); i++)
    around_.self->send(proxies_[i], messages::PartsNow{parts_of(i)});
  around_.self->send(coordinator_, Hold{false});
  came();
}

}  // namespace fastserve
