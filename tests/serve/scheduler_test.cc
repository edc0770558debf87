#include "serve/scheduler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <memory>

#include "base/rng.h"

using namespace fastserve;

namespace {

/// A scheduler and the steps of a model that answers every request with token 7.
struct Stage {
  KvPages pages;
  Scheduler scheduler;
  std::vector<std::unique_ptr<Sequence>> sequences;

  Stage(int blocks, const SchedulerLimits& limits) : pages(blocks, 4), scheduler(limits, pages) {}

  /// Prompts differ from each other in their first token.
  Sequence& add(int prompt) {
    auto s = std::make_unique<Sequence>();
    s->tokens.assign(static_cast<size_t>(prompt), 1);
    s->tokens[0] = 100 + static_cast<int32_t>(sequences.size());
    sequences.push_back(std::move(s));
    REQUIRE(scheduler.add(*sequences.back()));
    return *sequences.back();
  }

  /// Runs a step; returns the rows each sequence got.
  std::map<const Sequence*, int> step() {
    std::map<const Sequence*, int> rows;
    std::vector<Sequence*> answered;
    for (const auto& turn : scheduler.plan()) {
      CHECK(rows.emplace(turn.sequence, turn.rows).second);
      CHECK(turn.rows > 0);
      CHECK(turn.rows <= turn.sequence->pending());
      const size_t end = static_cast<size_t>(turn.sequence->computed + turn.rows);
      CHECK(turn.sequence->blocks.size() * 4 >= end);
      if (turn.rows == turn.sequence->pending()) answered.push_back(turn.sequence);
    }
    scheduler.advance();
    for (Sequence* s : answered) s->tokens.push_back(7);
    return rows;
  }
};

int total(const std::map<const Sequence*, int>& rows) {
  int sum = 0;
  for (const auto& [s, n] : rows) sum += n;
  return sum;
}

}  // namespace

TEST_CASE("a lone prompt uses the whole budget of a step") {
  Stage stage(40, {.step_rows = 32, .prefill_chunk = 8});
  const Sequence& s = stage.add(80);
  CHECK(stage.step()[&s] == 32);
  CHECK(stage.step()[&s] == 32);
  CHECK(stage.step()[&s] == 16);
  CHECK(stage.step()[&s] == 1);
}

TEST_CASE("answers get their token in every step while a long prompt is read") {
  Stage stage(200, {.step_rows = 32, .prefill_chunk = 8});
  const Sequence& a = stage.add(4);
  const Sequence& b = stage.add(4);
  stage.step();
  const Sequence& late = stage.add(400);
  for (int i = 0; i < 12; ++i) {
    auto rows = stage.step();
    CHECK(rows[&a] == 1);
    CHECK(rows[&b] == 1);
    CHECK(rows[&late] == 30);
    CHECK(total(rows) == 32);
  }
}

TEST_CASE("a short prompt does not wait behind long ones that fill every step") {
  Stage stage(600, {.step_rows = 32, .prefill_chunk = 8});
  for (int i = 0; i < 4; ++i) stage.add(400);
  for (int i = 0; i < 10; ++i) CHECK(total(stage.step()) == 32);
  const Sequence& small = stage.add(20);
  for (int i = 0; i < 3; ++i) CHECK(stage.step()[&small] > 0);
  CHECK(small.pending() == 1);
}

TEST_CASE("a long prompt does not starve behind a stream of short ones") {
  Stage stage(400, {.step_rows = 8, .prefill_chunk = 8});
  const Sequence& big = stage.add(64);
  int steps = 0;
  while (big.pending() > 1 && steps < 1000) {
    stage.add(8);
    stage.step();
    for (auto& s : stage.sequences)  // a short answer ends at once
      if (s.get() != &big && s->tokens.back() == 7) stage.scheduler.remove(*s);
    ++steps;
  }
  CHECK(steps < 250);
}

TEST_CASE("requests beyond the queue are turned away, and beyond max_running they wait") {
  Stage stage(100, {.step_rows = 32, .max_running = 2, .max_waiting = 3});
  for (int i = 0; i < 3; ++i) stage.add(4);
  Sequence extra;
  extra.tokens = {1};
  CHECK_FALSE(stage.scheduler.add(extra));
  stage.step();
  CHECK(stage.scheduler.running() == 2);
  CHECK(stage.scheduler.waiting() == 1);
  stage.scheduler.remove(*stage.sequences[0]);
  stage.step();
  CHECK(stage.scheduler.running() == 2);
  CHECK(stage.scheduler.waiting() == 0);
}

TEST_CASE("a request that does not fit is overtaken, but not for ever") {
  Stage stage(100, {.step_rows = 128});
  const Sequence& first = stage.add(100);
  stage.step();
  const Sequence& big = stage.add(320);  // 80 blocks of 100, and the first holds 25
  int overtakers = 0;
  for (int i = 0; i < 60 && overtakers == i; ++i) {
    Sequence& small = stage.add(4);
    if (stage.step().count(&small) > 0) ++overtakers;
    stage.scheduler.remove(small);
  }
  CHECK(overtakers == 32);
  CHECK(first.pending() == 1);
  stage.scheduler.remove(*stage.sequences[0]);
  CHECK(stage.step().count(&big) == 1);
}

TEST_CASE("when blocks run out the youngest gives way and the oldest goes on") {
  Stage stage(6, {.step_rows = 32});
  const Sequence& old = stage.add(8);
  const Sequence& young = stage.add(7);
  int old_tokens = 0;
  for (int i = 0; i < 14; ++i) {
    auto rows = stage.step();
    CHECK(rows[&old] > 0);
    old_tokens = static_cast<int>(old.tokens.size());
  }
  CHECK(old_tokens == 8 + 14);
  CHECK(stage.scheduler.preemptions() > 0);
  CHECK(stage.scheduler.waiting() == 1);
  stage.scheduler.remove(*stage.sequences[0]);
  const size_t before = young.tokens.size();
  for (int i = 0; i < 3; ++i) stage.step();
  CHECK(young.tokens.size() > before);
}

TEST_CASE("whatever comes and goes, steps stay in budget, everyone ends and no block is lost") {
  Rng rng(3);
  const SchedulerLimits limits{
      .step_rows = 16, .max_running = 6, .max_waiting = 50, .prefill_chunk = 4};
  Stage stage(20, limits);
  std::map<Sequence*, size_t> goal;
  int added = 0, ended = 0;
  for (int i = 0; i < 20000 && (added < 400 || !goal.empty()); ++i) {
    if (added < 400 && goal.size() < 40 && rng.below(3) == 0) {
      const int prompt = 1 + static_cast<int>(rng.below(40));
      Sequence& s = stage.add(prompt);
      goal[&s] = static_cast<size_t>(prompt) + 1 + rng.below(30);
      ++added;
    }
    const auto rows = stage.step();
    CHECK(total(rows) <= 16);
    CHECK((goal.empty() || !rows.empty()));
    for (auto it = goal.begin(); it != goal.end();) {
      if (it->first->tokens.size() < it->second && rng.below(200) != 0) {
        ++it;
        continue;
      }
      stage.scheduler.remove(*it->first);
      it = goal.erase(it);
      ++ended;
    }
  }
  CHECK(ended == 400);
  CHECK(stage.pages.free() == 20);
}

TEST_CASE("a step is planned behind another where that is what would be planned after it") {
  const auto all = [](const Sequence&) { return true; };
  Stage stage(8, {.step_rows = 32, .max_running = 2, .prefill_chunk = 4});
  Sequence& a = stage.add(6);
  CHECK(stage.scheduler.plan().size() == 1);
  CHECK(a.blocks.size() == 2);
  // What its first answer will be has a row, and so has each answer behind that.
  for (int length = 6; length < 12; ++length) {
    const auto ahead = stage.scheduler.plan_ahead(all);
    REQUIRE(ahead.size() == 1);
    CHECK(ahead[0].sequence == &a);
    CHECK(ahead[0].rows == 1);
    CHECK(a.blocks.size() * 4 >= static_cast<size_t>(length) + 1);
    stage.scheduler.advance();
    CHECK(a.computed == length);
    a.tokens.push_back(7);
  }
  SUBCASE("not of those that are known to end") {
    CHECK(stage.scheduler.plan_ahead([](const Sequence&) { return false; }).empty());
    stage.scheduler.advance();
    CHECK(a.computed == 12);
  }
  SUBCASE("nor where somebody could start") {
    stage.add(3);
    CHECK(stage.scheduler.plan_ahead(all).empty());
    stage.scheduler.advance();
    a.tokens.push_back(7);
    CHECK(stage.scheduler.plan().size() == 2);
    stage.add(3);  // there is no place for this one
    CHECK(stage.scheduler.plan_ahead(all).size() == 2);
  }
  SUBCASE("nor where it is removed meanwhile") {
    CHECK(stage.scheduler.plan_ahead(all).size() == 1);
    stage.scheduler.remove(a);
    CHECK(stage.pages.free() == 8);
    stage.scheduler.advance();
    CHECK(a.computed == 11);
    CHECK(stage.scheduler.plan().empty());
  }
}

TEST_CASE("no step is planned ahead of a prompt's end, or without blocks for it") {
  const auto all = [](const Sequence&) { return true; };
  Stage stage(4, {.step_rows = 8, .prefill_chunk = 4});
  Sequence& a = stage.add(11);
  CHECK(stage.scheduler.plan()[0].rows == 8);
  CHECK(stage.scheduler.plan_ahead(all).empty());
  stage.scheduler.advance();
  CHECK(stage.scheduler.plan()[0].rows == 3);
  CHECK(stage.scheduler.plan_ahead(all).size() == 1);  // the block's last place
  stage.scheduler.advance();
  a.tokens.push_back(7);
  CHECK(stage.scheduler.plan_ahead(all).size() == 1);  // the last block
  for (int i = 0; i < 4; ++i) {
    CHECK(a.blocks.size() == 4);
    stage.scheduler.advance();
    a.tokens.push_back(7);
    CHECK(stage.scheduler.plan_ahead(all).size() == (i < 3 ? 1 : 0));
  }
  CHECK(a.blocks.size() == 4);
}
