#include "model/tokenizer/pair_counts.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "model/tokenizer/pair_table.h"

namespace fastserve {

void PairCounts::add_word(std::span<const int32_t> symbols, int64_t weight) {
  const auto word = static_cast<uint32_t>(weights_.size());
  weights_.push_back(weight);
  for (size_t i = 0; i < symbols.size(); i++) {
    const auto place = static_cast<int32_t>(symbols_.size());
    symbols_.push_back(
        {symbols[i], i == 0 ? -1 : place - 1, i + 1 == symbols.size() ? -1 : place + 1, word});
  }
}

void PairCounts::start() {
  for (size_t place = 0; place < symbols_.size(); place++)
    if (symbols_[place].next >= 0) add(static_cast<int32_t>(place), weights_[symbols_[place].word]);
  grown_.clear();
  for (const auto& [key, occurrences] : pairs_) queue_.push({occurrences.count, key});
}

void PairCounts::add(int32_t place, int64_t weight) {
  const Symbol& left = symbols_[static_cast<size_t>(place)];
  const Symbol& right = symbols_[static_cast<size_t>(left.next)];
  const uint64_t key = pair_key(left.id, right.id);
  Occurrences& occurrences = pairs_[key];
  occurrences.count += weight;
  occurrences.places.push_back(place);
  grown_.push_back(key);
}

void PairCounts::remove(int32_t left, int32_t right, int64_t weight) {
  const auto found = pairs_.find(pair_key(left, right));
  FS_CHECK(found != pairs_.end());
  found->second.count -= weight;
}

std::optional<PairCounts::Pair> PairCounts::best() {
  while (!queue_.empty()) {
    const Candidate top = queue_.top();
    const auto found = pairs_.find(top.key);
    const int64_t count = found == pairs_.end() ? 0 : found->second.count;
    if (count == top.count && count > 0)
      return Pair{static_cast<int32_t>(top.key >> 32), static_cast<int32_t>(top.key), count};
    queue_.pop();
    if (count > 0)
      queue_.push({count, top.key});
    else if (found != pairs_.end())
      pairs_.erase(found);
  }
  return std::nullopt;
}

void PairCounts::join(int32_t place, int32_t whole) {
  Symbol& left = symbols_[static_cast<size_t>(place)];
  Symbol& right = symbols_[static_cast<size_t>(left.next)];
  const int64_t weight = weights_[left.word];
  if (left.previous >= 0) remove(symbols_[static_cast<size_t>(left.previous)].id, left.id, weight);
  if (right.next >= 0) remove(right.id, symbols_[static_cast<size_t>(right.next)].id, weight);
  left.id = whole;
  left.next = right.next;
  right.id = -1;
  if (left.next >= 0) {
    symbols_[static_cast<size_t>(left.next)].previous = place;
    add(place, weight);
  }
  if (left.previous >= 0) add(left.previous, weight);
}

void PairCounts::merge(int32_t left, int32_t right, int32_t whole) {
  const uint64_t key = pair_key(left, right);
  std::vector<int32_t> places = std::move(pairs_[key].places);
  pairs_[key].places.clear();
  std::sort(places.begin(), places.end());
  places.erase(std::unique(places.begin(), places.end()), places.end());
  for (const int32_t place : places) {
    const Symbol& symbol = symbols_[static_cast<size_t>(place)];
    if (symbol.id != left || symbol.next < 0) continue;
    if (symbols_[static_cast<size_t>(symbol.next)].id != right) continue;
    remove(left, right, weights_[symbol.word]);
    join(place, whole);
  }
  std::sort(grown_.begin(), grown_.end());
  grown_.erase(std::unique(grown_.begin(), grown_.end()), grown_.end());
  for (const uint64_t grown : grown_)
    if (const int64_t count = pairs_[grown].count; count > 0) queue_.push({count, grown});
  grown_.clear();
}

}  // namespace fastserve
