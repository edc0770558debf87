// Which request holds which block of the KV pool, and which blocks can be used again.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace fastserve {

/// Hands out the blocks of one KV pool and remembers what full ones hold, so that a prompt that
/// begins like an earlier text takes that text's blocks instead of computing them again.
///
/// Owns:     the bookkeeping of `blocks` blocks, allocated once; never the pool itself.
/// Threads:  one caller.
/// Promises: a shared block holds exactly the tokens asked for behind exactly the same tokens
///           (compared, not only hashed), so sharing changes no result. A block in use is never
///           handed out; one that only the memory of prefixes holds is, the longest unused first.
class KvPages {
 public:
  KvPages(int blocks, int block_tokens);

  int blocks() const { return static_cast<int>(pages_.size()); }
  int block_tokens() const { return block_tokens_; }
  /// Blocks that take() can still hand out.
  int free() const { return free_; }

  /// A block for one holder, its content forgotten; -1 when all are in use.
  int32_t take();
  /// Ends one holder's use.
  void release(int32_t block);

  /// The blocks of the longest remembered beginning of `tokens`, each with one more holder,
  /// appended to `blocks`. Only full blocks count, and at least the last token is left to compute.
  void share_prefix(std::span<const int32_t> tokens, std::vector<int32_t>& blocks);
  /// How many blocks share_prefix would find, and how many of them count as free now.
  struct Prefix {
    int blocks = 0, of_them_free = 0;
  };
  Prefix find_prefix(std::span<const int32_t> tokens) const;

  /// Remembers that `block` holds the `block_tokens` tokens `content`, behind what `before` holds
  /// (-1: nothing). Ignored when an equal one is known, or `before` is not remembered.
  void remember(int32_t block, int32_t before, std::span<const int32_t> content);
  /// The pool is another one, which holds nothing yet. Requires that no block is in use.
  void forget_all();

 private:
  struct Page {
    int holders = 0;
    uint64_t text = 0;               ///< names the remembered text up to this block's end; 0: none
    uint64_t text_before = 0;        ///< of the block before it; 0: none, this is the first
    uint64_t key = 0;                ///< under which by_key_ has it
    int32_t older = -1, newer = -1;  ///< neighbours among the unused
  };
  Page& page(int32_t block) { return pages_[static_cast<size_t>(block)]; }
  const Page& page(int32_t block) const { return pages_[static_cast<size_t>(block)]; }
  int32_t find(uint64_t text_before, std::span<const int32_t> content) const;
  void hold(int32_t block);
  void unlink(int32_t block);
  void link_newest(int32_t block);
  void link_oldest(int32_t block);
  void forget(int32_t block);

  const int block_tokens_;
  int free_;
  int32_t oldest_ = -1, newest_ = -1;  ///< unused blocks, in the order take() uses them
  uint64_t next_text_ = 1;
  std::vector<Page> pages_;
  std::vector<int32_t> contents_;  ///< [blocks, block_tokens] of remembered blocks
  std::unordered_map<uint64_t, int32_t> by_key_;
};

}  // namespace fastserve
