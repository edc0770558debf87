// Which requests take part in the next engine step, and with how many tokens.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <vector>

#include "serve/kv_pages.h"
#include "serve/kv_parking.h"

namespace fastserve {

/// One request as the scheduler sees it. The owner appends to `tokens`; the rest is the
/// scheduler's.
struct Sequence {
  std::vector<int32_t> tokens;  ///< prompt, then answer so far; never empty
  int computed = 0;             ///< first tokens whose keys and values lie in `blocks`
  std::vector<int32_t> blocks;
  std::vector<int32_t> parked;  ///< places on the host of its first blocks, while it has given way
  int parked_tokens = 0;        ///< whose keys and values lie there
  int remembered = 0;           ///< first blocks that KvPages was told about
  int64_t arrival = 0;          ///< orders requests; set by add()
  int64_t prefilled = 0;        ///< tokens computed in chunks: what places it in the feedback queue
  int64_t waiting_since = 0;    ///< step of its last chunk, or of its arrival
  int passed_over = 0;          ///< later requests admitted while it did not fit
  bool begun = false;           ///< it has been running

  int pending() const { return static_cast<int>(tokens.size()) - computed; }
};

struct SchedulerLimits {
  int step_rows = 256;     ///< tokens of one step: bounds how long a step takes
  int max_running = 64;    ///< requests that share steps
  int max_waiting = 256;   ///< requests that wait for a place
  int prefill_chunk = 64;  ///< tokens one prompt gets in a step while others want some
};

/// Splits each step's token budget over decodes and chunks of prompts.
///
/// - Every running answer gets its one token first, oldest first.
/// - What is left goes to prompts, in chunks, by a multi-level feedback queue: the fewer of a
///   prompt's tokens have been computed, the earlier its turn, so that a short prompt does not wait
///   behind a long one; a prompt passed over for some steps moves up, so that it does not starve.
/// - A request starts when its tokens fit the free KV blocks. Later, smaller ones may overtake one
///   that does not fit, but only so often.
/// - When an answer needs a block and there is none, the youngest request gives its blocks back.
///   What they hold is kept on the host if there is room, and computed again if not. The oldest
///   always proceeds.
///
/// Owns:     no sequence; they must outlive their stay.
/// Threads:  one caller.
class Scheduler {
 public:
  /// `pages` must outlive it, and hold the longest sequence ever added. `host_places`: blocks that
  /// the host can hold beside it.
  Scheduler(const SchedulerLimits& limits, KvPages& pages, int host_places = 0);

  /// False when the queue is full.
  bool add(Sequence& sequence);
  /// While closed, only those that have begun go on; the others stay in the queue.
  void set_closed(bool closed) { closed_ = closed; }
  /// Takes a sequence out and frees its blocks, to which a step that is at work may still write.
  void remove(Sequence& sequence);

  struct Turn {
    Sequence* sequence;
    int rows;  ///< tokens from sequence->computed on
  };
  /// The next step; empty when nobody has work. Valid until the next call of any function but
  /// add(). Requires that all steps that were planned have been advanced.
  std::span<const Turn> plan();
  /// The step behind that one, which may be at work: the next token of each of its turns whose
  /// sequence `goes_on`, though nobody knows the token before it yet. Empty, and nothing planned,
  /// where that is not what plan() would do: a prompt has more to come, somebody could start, or
  /// blocks are short. Valid as plan()'s.
  std::span<const Turn> plan_ahead(const std::function<bool(const Sequence&)>& goes_on);
  /// What has to be moved before that step runs, in this order; once.
  std::vector<BlockMove> take_moves() { return parking_.take_moves(); }
  /// After the step ran: counts its turns as computed, but for those removed since. The step
  /// planned ahead is then the one at work.
  void advance();

  /// The pool is another one, with so many places on the host beside it. Requires !begun().
  void restart(int host_places);

  /// Someone has begun and not ended, though it may have given way.
  bool begun() const;
  /// Someone has not begun.
  bool asked() const;
  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size()); }
  int64_t preemptions() const { return preemptions_; }
  int64_t parked_tokens() const { return parked_tokens_; }  ///< brought back, not computed again
  int64_t shared_tokens() const { return shared_tokens_; }  ///< not computed thanks to a prefix

 private:
  void admit();
  bool try_start(Sequence& sequence);
  void plan_decodes();
  void plan_prompts();
  bool ensure_block(Sequence& sequence);
  void preempt(Sequence& sequence);
  void release_blocks(Sequence& sequence);
  void fetch_parked(Sequence& sequence);
  void forget_parked(Sequence& sequence);
  int64_t rank(const Sequence& sequence) const;

  SchedulerLimits limits_;
  KvPages& pages_;
  KvParking parking_;
  std::vector<Sequence*> running_;  ///< by arrival
  std::deque<Sequence*> waiting_;   ///< by arrival
  std::vector<Sequence*> prompts_;
  std::vector<Turn> turns_, ahead_;
  int rows_left_ = 0;
  bool closed_ = false;
  int64_t step_ = 0, next_arrival_ = 0, preemptions_ = 0, shared_tokens_ = 0, parked_tokens_ = 0;
};

}  // namespace fastserve
