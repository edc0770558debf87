#include "serve/kv_pages.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/rng.h"

using namespace fastserve;
using Tokens = std::vector<int32_t>;

namespace {

/// Computes a text's blocks as a request would: shares what is known, takes the rest, remembers.
std::vector<int32_t> compute(KvPages& pages, const Tokens& text) {
  std::vector<int32_t> blocks;
  pages.share_prefix(text, blocks);
  const size_t size = static_cast<size_t>(pages.block_tokens());
  while (blocks.size() * size < text.size()) blocks.push_back(pages.take());
  for (size_t b = 0; (b + 1) * size <= text.size(); ++b)
    pages.remember(blocks[b], b == 0 ? -1 : blocks[b - 1], std::span(text).subspan(b * size, size));
  return blocks;
}

void release(KvPages& pages, const std::vector<int32_t>& blocks) {
  for (auto it = blocks.rbegin(); it != blocks.rend(); ++it) pages.release(*it);
}

}  // namespace

TEST_CASE("every block is handed out once, then there are none") {
  KvPages pages(5, 4);
  std::set<int32_t> taken;
  for (int i = 0; i < 5; ++i) taken.insert(pages.take());
  CHECK(taken == std::set<int32_t>{0, 1, 2, 3, 4});
  CHECK(pages.free() == 0);
  CHECK(pages.take() == -1);
  pages.release(3);
  CHECK(pages.free() == 1);
  CHECK(pages.take() == 3);
}

TEST_CASE("a prompt that begins like an earlier text takes its full blocks") {
  KvPages pages(10, 2);
  const auto first = compute(pages, {1, 2, 3, 4, 5});
  const auto second = compute(pages, {1, 2, 3, 4, 9, 9});
  CHECK(second[0] == first[0]);
  CHECK(second[1] == first[1]);
  CHECK(second[2] != first[2]);
  CHECK(pages.free() == 10 - 4);
  release(pages, first);
  CHECK(pages.free() == 10 - 3);
  release(pages, second);
  CHECK(pages.free() == 10);
}

TEST_CASE("the last token of a prompt is always left to compute") {
  KvPages pages(10, 2);
  release(pages, compute(pages, {1, 2, 3, 4}));
  std::vector<int32_t> blocks;
  pages.share_prefix(Tokens{1, 2, 3, 4}, blocks);
  CHECK(blocks.size() == 1);
  CHECK(pages.find_prefix(Tokens{1, 2, 3, 4, 5}).blocks == 2);
}

TEST_CASE("the same tokens behind another beginning are another text") {
  KvPages pages(10, 2);
  compute(pages, {1, 2, 3, 4});
  CHECK(pages.find_prefix(Tokens{3, 4, 0}).blocks == 0);
  CHECK(pages.find_prefix(Tokens{7, 8, 3, 4, 0}).blocks == 0);
}

TEST_CASE("unused texts are forgotten oldest first, and their ends before their beginnings") {
  KvPages pages(4, 2);
  release(pages, compute(pages, {1, 2, 3, 4}));
  release(pages, compute(pages, {5, 6, 7, 8}));
  pages.take();
  CHECK(pages.find_prefix(Tokens{1, 2, 3, 4, 0}).blocks == 1);
  CHECK(pages.find_prefix(Tokens{5, 6, 7, 8, 0}).blocks == 2);
  pages.take();
  CHECK(pages.find_prefix(Tokens{1, 2, 3, 4, 0}).blocks == 0);
  CHECK(pages.find_prefix(Tokens{5, 6, 7, 8, 0}).blocks == 2);
}

TEST_CASE("whatever requests come and go, a shared block holds the text it is shared for") {
  Rng rng(11);
  KvPages pages(12, 3);
  std::map<int32_t, Tokens> held;  // what each block's holder wrote: the text up to its end
  std::vector<std::pair<Tokens, std::vector<int32_t>>> live;
  for (int round = 0; round < 3000; ++round) {
    if (live.size() < 3 && rng.below(2) == 0) {
      Tokens text(1 + rng.below(9));
      for (int32_t& t : text) t = static_cast<int32_t>(rng.below(2));
      std::vector<int32_t> shared;
      pages.share_prefix(text, shared);
      for (size_t b = 0; b < shared.size(); ++b)
        CHECK(held[shared[b]] == Tokens(text.begin(), text.begin() + static_cast<long>(3 * b + 3)));
      release(pages, shared);
      const auto blocks = compute(pages, text);
      CHECK(std::find(blocks.begin(), blocks.end(), -1) == blocks.end());
      for (size_t b = 0; 3 * b + 3 <= text.size(); ++b)
        held[blocks[b]] = Tokens(text.begin(), text.begin() + static_cast<long>(3 * b + 3));
      live.emplace_back(text, blocks);
    } else if (!live.empty()) {
      const size_t i = rng.below(live.size());
      release(pages, live[i].second);
      live.erase(live.begin() + static_cast<long>(i));
    }
  }
  for (const auto& [text, blocks] : live) release(pages, blocks);
  CHECK(pages.free() == 12);
}
