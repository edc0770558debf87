// The books of BPE training: which pairs of neighbouring symbols occur where, and how often.
#pragma once

#include <cstdint>
#include <optional>
#include <queue>
#include <span>
#include <unordered_map>
#include <vector>

namespace fastserve {

/// Words as linked symbols, with the weighted count of every pair of neighbours kept up to date
/// while pairs are merged.
///
/// Cost: a merge takes time in proportion to the pair's occurrences, whatever the words' lengths.
class PairCounts {
 public:
  /// Adds a word that occurs `weight` times.
  void add_word(std::span<const int32_t> symbols, int64_t weight);
  /// Counts what add_word brought; once, before the first best().
  void start();

  struct Pair {
    int32_t left, right;
    int64_t count;
  };
  /// The most frequent pair, of equal ones that with the lower ids; none when no pair occurs.
  std::optional<Pair> best();
  /// Joins every occurrence of a pair, from left to right, into `whole`.
  void merge(int32_t left, int32_t right, int32_t whole);

 private:
  struct Symbol {
    int32_t id;  ///< -1: joined to the one before
    int32_t previous, next;
    uint32_t word;
  };
  struct Occurrences {
    int64_t count = 0;
    std::vector<int32_t> places;  ///< of left symbols; some may be gone
  };
  struct Candidate {
    int64_t count;
    uint64_t key;
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : key > other.key;
    }
  };
  void add(int32_t place, int64_t weight);
  void remove(int32_t left, int32_t right, int64_t weight);
  void join(int32_t place, int32_t whole);

  std::vector<Symbol> symbols_;
  std::vector<int64_t> weights_;  ///< of words
  std::unordered_map<uint64_t, Occurrences> pairs_;
  std::priority_queue<Candidate> queue_;  ///< counts here may be too high, never too low
  std::vector<uint64_t> grown_;           ///< pairs that merge() made more frequent
};

}  // namespace fastserve
