#include "serve/scheduler.h"

#include <algorithm>

#include "base/check.h"

namespace fastserve {
namespace {

/// Later requests that may start before one that does not fit yet.
constexpr int kMayPass = 32;
/// Steps without a chunk after which a prompt moves up one level.
constexpr int64_t kPatience = 8;

bool arrived_before(const Sequence* a, const Sequence* b) { return a->arrival < b->arrival; }

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits, KvPages& pages, int host_places)
    : limits_(limits), pages_(pages), parking_(host_places) {
  FS_CHECK(limits.step_rows > 0 && limits.max_running > 0 && limits.prefill_chunk > 0);
  // Half the rows at most go to answers, so that prompts always move.
  limits_.max_running = std::min(limits.max_running, std::max(1, limits.step_rows / 2));
  const size_t running = static_cast<size_t>(limits_.max_running);
  running_.reserve(running);
  prompts_.reserve(running);
  turns_.reserve(running);
}

bool Scheduler::add(Sequence& sequence) {
  FS_CHECK(!sequence.tokens.empty() && sequence.blocks.empty() && sequence.computed == 0);
  if (waiting() >= limits_.max_waiting) return false;
  sequence.arrival = next_arrival_++;
  sequence.waiting_since = step_;
  waiting_.push_back(&sequence);
  return true;
}

void Scheduler::remove(Sequence& sequence) {
  release_blocks(sequence);
  forget_parked(sequence);
  std::erase(running_, &sequence);
  std::erase(waiting_, &sequence);
  const auto its = [&](const Turn& turn) { return turn.sequence == &sequence; };
  std::erase_if(turns_, its);
  std::erase_if(ahead_, its);
}

void Scheduler::restart(int host_places) {
  FS_CHECK(!begun());
  pages_.forget_all();
  parking_ = KvParking(host_places);
}

bool Scheduler::begun() const {
  return !running_.empty() ||
         std::any_of(waiting_.begin(), waiting_.end(), [](const Sequence* s) { return s->begun; });
}

bool Scheduler::asked() const {
  return std::any_of(waiting_.begin(), waiting_.end(), [](const Sequence* s) { return !s->begun; });
}

std::span<const Scheduler::Turn> Scheduler::plan() {
  FS_CHECK(ahead_.empty());
  ++step_;
  turns_.clear();
  rows_left_ = limits_.step_rows;
  admit();
  plan_decodes();
  plan_prompts();
  return turns_;
}

void Scheduler::advance() {
  const int size = pages_.block_tokens();
  for (const Turn& turn : turns_) {
    Sequence& s = *turn.sequence;
    s.computed += turn.rows;
    for (; (s.remembered + 1) * size <= s.computed; ++s.remembered) {
      const size_t b = static_cast<size_t>(s.remembered);
      pages_.remember(
          s.blocks[b], b == 0 ? -1 : s.blocks[b - 1],
          std::span(s.tokens).subspan(b * static_cast<size_t>(size), static_cast<size_t>(size)));
    }
  }
  turns_.swap(ahead_);
  ahead_.clear();
}

std::span<const Scheduler::Turn> Scheduler::plan_ahead(
    const std::function<bool(const Sequence&)>& goes_on) {
  FS_CHECK(ahead_.empty());
  const bool may_start = !waiting_.empty() && running() < limits_.max_running;
  if (may_start || turns_.size() != running_.size()) return {};
  const size_t size = static_cast<size_t>(pages_.block_tokens());
  const auto full = [&](const Sequence& s) { return s.blocks.size() * size == s.tokens.size(); };
  int wanted = 0;
  for (const Turn& turn : turns_) {
    const Sequence& s = *turn.sequence;
    if (s.pending() != turn.rows) return {};
    if (goes_on(s) && full(s)) ++wanted;
  }
  if (wanted > pages_.free()) return {};
  for (const Turn& turn : turns_) {
    if (!goes_on(*turn.sequence)) continue;
    if (full(*turn.sequence)) turn.sequence->blocks.push_back(pages_.take());
    ahead_.push_back({turn.sequence, 1});
  }
  if (!ahead_.empty()) ++step_;
  return ahead_;
}

void Scheduler::admit() {
  bool someone_waits = false;
  for (auto it = waiting_.begin(); it != waiting_.end() && running() < limits_.max_running;) {
    if (closed_ && !(*it)->begun) {
      ++it;
      continue;
    }
    if (try_start(**it)) {
      for (auto earlier = waiting_.begin(); earlier != it; ++earlier) ++(*earlier)->passed_over;
      it = waiting_.erase(it);
      continue;
    }
    if (!someone_waits && (*it)->passed_over >= kMayPass) return;  // no more overtaking
    someone_waits = true;
    ++it;
  }
}

bool Scheduler::try_start(Sequence& s) {
  const int size = pages_.block_tokens();
  const int blocks = (static_cast<int>(s.tokens.size()) + size - 1) / size;
  const KvPages::Prefix prefix = pages_.find_prefix(s.tokens);
  // Each running answer may want a block soon: starting one only to stop another gains nothing.
  const int spare = running();
  if (blocks - prefix.blocks + spare > pages_.free() - prefix.of_them_free) return false;
  pages_.share_prefix(s.tokens, s.blocks);
  s.computed = prefix.blocks * size;
  s.remembered = prefix.blocks;
  shared_tokens_ += s.computed;
  while (static_cast<int>(s.blocks.size()) < blocks) s.blocks.push_back(pages_.take());
  fetch_parked(s);
  s.waiting_since = step_;
  s.passed_over = 0;
  s.begun = true;
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &s, arrived_before), &s);
  return true;
}

void Scheduler::plan_decodes() {
  for (size_t i = 0; i < running_.size(); ++i) {  // preemption shortens running_ at its end
    Sequence& s = *running_[i];
    if (s.pending() != 1 || !ensure_block(s)) continue;
    turns_.push_back({&s, 1});
    --rows_left_;
  }
}

/// A block for the last token. Takes it from younger requests, which come later in running_; false
/// when `s` itself was the youngest and gave way.
bool Scheduler::ensure_block(Sequence& s) {
  const size_t size = static_cast<size_t>(pages_.block_tokens());
  while (s.blocks.size() * size < s.tokens.size()) {
    const int32_t block = pages_.take();
    if (block >= 0) {
      s.blocks.push_back(block);
      continue;
    }
    Sequence& youngest = *running_.back();
    preempt(youngest);
    if (&youngest == &s) return false;
  }
  return true;
}

/// What was computed before it gave way, as far as no block of the prefix memory holds it.
void Scheduler::fetch_parked(Sequence& s) {
  if (s.parked_tokens > s.computed) {
    const size_t first = static_cast<size_t>(s.computed / pages_.block_tokens());
    parking_.fetch(std::span(s.parked).subspan(first),
                   std::span(s.blocks).subspan(first, s.parked.size() - first));
    parked_tokens_ += s.parked_tokens - s.computed;
    s.computed = s.parked_tokens;
  }
  forget_parked(s);
}

void Scheduler::forget_parked(Sequence& s) {
  parking_.release(s.parked);
  s.parked.clear();
  s.parked_tokens = 0;
}

void Scheduler::preempt(Sequence& s) {
  ++preemptions_;
  const int size = pages_.block_tokens(), used = (s.computed + size - 1) / size;
  if (parking_.park(std::span(s.blocks).first(static_cast<size_t>(used)), s.parked))
    s.parked_tokens = s.computed;
  release_blocks(s);
  s.computed = s.remembered = 0;
  std::erase(running_, &s);
  waiting_.insert(std::upper_bound(waiting_.begin(), waiting_.end(), &s, arrived_before), &s);
}

void Scheduler::release_blocks(Sequence& s) {
  // The end first: what is left of a remembered text is then its beginning.
  for (auto it = s.blocks.rbegin(); it != s.blocks.rend(); ++it) pages_.release(*it);
  s.blocks.clear();
}

/// Lower is earlier: the level of the feedback queue, less one for each kPatience steps of waiting.
int64_t Scheduler::rank(const Sequence& s) const {
  int64_t level = 0;
  for (int64_t quota = limits_.prefill_chunk; s.prefilled >= quota && level < 4; quota *= 4)
    ++level;
  return level - (step_ - s.waiting_since) / kPatience;
}

void Scheduler::plan_prompts() {
  prompts_.clear();
  for (Sequence* s : running_)
    if (s->pending() > 1) prompts_.push_back(s);
  std::sort(prompts_.begin(), prompts_.end(), [&](const Sequence* a, const Sequence* b) {
    const int64_t x = rank(*a), y = rank(*b);
    return x != y ? x < y : a->arrival < b->arrival;
  });
  const size_t first = turns_.size();
  for (Sequence* s : prompts_) {
    const int rows = std::min({s->pending(), limits_.prefill_chunk, rows_left_});
    if (rows == 0) break;
    turns_.push_back({s, rows});
    rows_left_ -= rows;
  }
  for (size_t i = first; i < turns_.size(); ++i) {
    Turn& turn = turns_[i];
    const int more = std::min(turn.sequence->pending() - turn.rows, rows_left_);
    turn.rows += more;
    rows_left_ -= more;
    turn.sequence->prefilled += turn.rows;
    turn.sequence->waiting_since = step_;
  }
}

}  // namespace fastserve
