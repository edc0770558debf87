#include "train/shard_copies.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <map>

#include "base/check.h"

namespace fastserve {

ShardHolders place_copies(const std::vector<std::string>& owners,
                          const std::vector<std::string>& serving, int replicas) {
  const size_t n = serving.size();
  const auto others =
      std::min(static_cast<size_t>(std::max(0, replicas)), n - std::min<size_t>(1, n));
  ShardHolders holders;
  std::map<std::string, size_t> led;
  for (const std::string& owner : owners) {
    holders.push_back({owner});
    const auto at = std::find(serving.begin(), serving.end(), owner) - serving.begin();
    const size_t turn = led[owner]++;
    for (size_t i = 0; i < others; i++)
      holders.back().push_back(serving[(static_cast<size_t>(at) + 1 + (turn + i) % (n - 1)) % n]);
  }
  return holders;
}

ShardCopies::ShardCopies(ShardHolders holders, StepId first) : holders_(std::move(holders)) {
  for (const auto& nodes : holders_) {
    FS_CHECK(!nodes.empty());
    Shard& shard = shards_.emplace_back();
    shard.copies.assign(nodes.size(), {false, first});
    shard.step = first;
  }
}

bool ShardCopies::needed(const std::string& node) const {
  return std::any_of(holders_.begin(), holders_.end(),
                     [&](const auto& nodes) { return nodes.size() == 1 && nodes.front() == node; });
}

int ShardCopies::fewest() const {
  size_t fewest = holders_.empty() ? 1 : holders_.front().size();
  for (const auto& nodes : holders_) fewest = std::min(fewest, nodes.size());
  return static_cast<int>(fewest) - 1;
}

ShardCopies::Copy* ShardCopies::find(const std::string& node, uint32_t shard) {
  if (shard >= shards_.size()) return nullptr;
  const auto& nodes = holders_[shard];
  const auto at = std::find(nodes.begin(), nodes.end(), node);
  return at == nodes.end() ? nullptr
                           : &shards_[shard].copies[static_cast<size_t>(at - nodes.begin())];
}

std::optional<ShardCopies::Gathered> ShardCopies::whole(uint32_t index) {
  Shard& shard = shards_[index];
  const bool all = std::all_of(shard.copies.begin(), shard.copies.end(), [&](const Copy& copy) {
    return copy.step == shard.step && copy.gathered;
  });
  if (!all || shard.told) return std::nullopt;
  shard.told = true;
  return Gathered{index, shard.step, shard.squares};
}

bool ShardCopies::ready(uint32_t index) {
  Shard& shard = shards_[index];
  const bool all = std::all_of(shard.copies.begin(), shard.copies.end(),
                               [&](const Copy& copy) { return copy.step > shard.step; });
  if (!all) return false;
  shard.step.value++;
  shard.known = shard.told = false;
  return true;
}

Result<std::optional<ShardCopies::Gathered>> ShardCopies::gathered(const std::string& node,
                                                                   uint32_t index, StepId step,
                                                                   std::vector<double> squares) {
  Copy* copy = find(node, index);
  if (copy == nullptr || copy->step != step || step != shards_[index].step || copy->gathered)
    return std::optional<Gathered>();
  Shard& shard = shards_[index];
  const auto same = [](double a, double b) {
    return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b);
  };
  if (shard.known && !std::ranges::equal(shard.squares, squares, same))
    return Error{
        ErrorCode::kCorrupt,
        fmt::format("has summed another gradient of step {} than the other nodes that hold "
                    "shard {}: one of them has bad memory or other code",
                    step.value, index),
        "node " + node, ""};
  if (!shard.known) shard.squares = std::move(squares);
  shard.known = true;
  copy->gathered = true;
  return whole(index);
}

bool ShardCopies::applied(const std::string& node, uint32_t index, StepId step) {
  Copy* copy = find(node, index);
  if (copy == nullptr || copy->step != step) return false;
  copy->step.value++;
  copy->gathered = false;
  return ready(index);
}

ShardCopies::Loss ShardCopies::lose(const std::string& node) {
  FS_CHECK(!needed(node));
  Loss loss;
  for (uint32_t i = 0; i < shards_.size(); i++) {
    auto& nodes = holders_[i];
    const auto at = std::find(nodes.begin(), nodes.end(), node);
    if (at == nodes.end()) continue;
    loss.copies++;
    if (at == nodes.begin()) loss.moved.push_back(i);
    shards_[i].copies.erase(shards_[i].copies.begin() + (at - nodes.begin()));
    nodes.erase(at);
    if (auto gathered = whole(i)) loss.gathered.push_back(std::move(*gathered));
    if (const StepId step = shards_[i].step; ready(i)) loss.ready.push_back({i, step});
  }
  return loss;
}

bool ShardCopies::takes(uint32_t index, StepId step, bool best) {
  auto& taken = best ? shards_[index].best : shards_[index].state;
  if (taken && *taken >= step) return false;
  taken = step;
  return true;
}

std::vector<ShardCopies::Seed> ShardCopies::seeds(const std::vector<std::string>& serving,
                                                  int replicas) const {
  std::map<std::string, size_t> held;
  for (const std::string& node : serving) held[node] = 0;
  for (const auto& nodes : holders_)
    for (const std::string& node : nodes) held[node]++;
  std::vector<Seed> seeds;
  for (uint32_t i = 0; i < holders_.size(); i++) {
    std::vector<std::string> nodes = holders_[i];
    while (nodes.size() <= static_cast<size_t>(replicas)) {
      const std::string* least = nullptr;
      for (const std::string& node : serving)
        if (std::find(nodes.begin(), nodes.end(), node) == nodes.end() &&
            (least == nullptr || held[node] < held[*least]))
          least = &node;
      if (least == nullptr) break;
      held[*least]++;
      seeds.push_back({i, nodes.front(), *least});
      nodes.push_back(*least);
    }
  }
  return seeds;
}

void ShardCopies::add(uint32_t index, const std::string& node) {
  Shard& shard = shards_[index];
  FS_CHECK(!shard.known && find(node, index) == nullptr);
  holders_[index].push_back(node);
  shard.copies.push_back({false, shard.step});
}

std::vector<uint32_t> HeldShards::set(ShardHolders holders) {
  std::lock_guard lock(mutex_);
  std::vector<uint32_t> leads;
  for (uint32_t i = 0; i < holders.size(); i++)
    if (leads_in(holders, i) && !leads_in(holders_, i)) leads.push_back(i);
  holders_ = std::move(holders);
  return leads;
}

bool HeldShards::holds(uint32_t shard, const std::string& node) const {
  std::lock_guard lock(mutex_);
  return shard < holders_.size() &&
         std::find(holders_[shard].begin(), holders_[shard].end(), node) != holders_[shard].end();
}

bool HeldShards::leads(uint32_t shard) const {
  std::lock_guard lock(mutex_);
  return leads_in(holders_, shard);
}

std::vector<std::string> HeldShards::others(uint32_t shard) const {
  std::lock_guard lock(mutex_);
  std::vector<std::string> others =
      shard < holders_.size() ? holders_[shard] : std::vector<std::string>();
  std::erase(others, me_);
  return others;
}

}  // namespace fastserve
