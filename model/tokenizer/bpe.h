// Byte-pair encoding: the "model" of tokenizer.json.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "model/tokenizer/chunk_cache.h"
#include "model/tokenizer/leaf_table.h"
#include "model/tokenizer/pair_table.h"
#include "model/tokenizer/vocabulary.h"

namespace fastserve {

/// Merges neighbouring symbols of a piece, always the pair of the lowest rank, the leftmost first.
///
/// Threads: const calls from any thread, each with a Run of its own.
/// Promises: O(n log n) for a piece of n symbols.
/// Refuses:  dropout, prefixes and suffixes of subwords (kUnsupported).
class Bpe {
 public:
  static Result<Bpe> parse(const Section& model);

  /// The memory of one call of encode().
  class Run {
    friend class Bpe;
    struct Symbol {
      int32_t id;  ///< -1: merged into the one before
      int32_t previous, next;
    };
    struct Candidate {
      uint64_t order;  ///< rank, then position
      int32_t id;
    };
    std::vector<int32_t> leaves_;
    std::vector<Symbol> symbols_;
    std::vector<Candidate> heap_;
    ChunkCache cache_;
  };

  /// Appends the ids of `piece` (well-formed UTF-8, below 2 GiB).
  Status encode(std::string_view piece, bool spelled_as_bytes, Run& run,
                std::vector<int32_t>& out) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    uint32_t rank;
    int32_t id;
  };
  Bpe(Vocabulary vocabulary, UnknownPolicy policy);

  Status add_merges(const Section& model);
  /// The ids of the two tokens and of what they make.
  Result<std::array<int32_t, 3>> resolve(const Section& model, uint32_t rank, std::string_view left,
                                         std::string_view right) const;
  /// Finds between which leaves a merge can ever join two symbols.
  void find_joints(std::span<const std::array<int32_t, 3>> merges);
  void index_whole_words();
  std::optional<int32_t> whole_word(std::string_view piece, bool spelled_as_bytes) const;
  void merge_chunk(std::span<const int32_t> leaves, Run& run, std::vector<int32_t>& out) const;
  void merge_all(std::span<const int32_t> leaves, Run& run) const;
  /// Appends the merge of two neighbours to the heap's memory, if there is one.
  bool consider(const Run::Symbol& left, size_t position, const Run::Symbol& right, Run& run) const;

  Vocabulary vocabulary_;
  LeafTable leaves_;
  PairTable<Merge> merges_;
  bool cuts_ = false;  ///< joints_ is complete: a piece may be cut where no joint is
  PairTable<uint8_t> joints_;
  bool ignore_merges_ = false;
  struct WordIndex {
    std::vector<std::string> texts;
    std::unordered_map<std::string_view, int32_t> ids;
  };
  std::unique_ptr<WordIndex> byte_words_;  ///< tokens as the bytes they spell, for ignore_merges
};

}  // namespace fastserve
