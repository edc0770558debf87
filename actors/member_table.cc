// Which nodes take part in a job, for those who ask from outside.
#include "actors/conductor.h"

namespace fastserve {

void MemberTable::set(const std::string& node, Member member) {
  std::lock_guard lock(mutex_);
  members_[node] = member;
  if (member.trainer) names_[*member.trainer] = node;
}

std::string MemberTable::name_of(TrainerId trainer) const {
  std::lock_guard lock(mutex_);
  const auto it = names_.find(trainer);
  return it == names_.end() ? "" : it->second;
}

void MemberTable::measure(const TrainingJob& job) {
  std::lock_guard lock(mutex_);
  for (auto& [name, member] : members_) {
    if (!member.trainer) continue;
    member.share = job.share(*member.trainer);
    member.microbatches_per_second = job.rate(*member.trainer);
  }
}

void MemberTable::drop(const std::string& node) {
  std::lock_guard lock(mutex_);
  members_.erase(node);
}

std::map<std::string, Member> MemberTable::all() const {
  std::lock_guard lock(mutex_);
  return members_;
}

}  // namespace fastserve
