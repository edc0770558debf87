#include "serve/kv_pages.h"

#include <algorithm>

#include "base/check.h"
#include "base/hash.h"

namespace fastserve {

KvPages::KvPages(int blocks, int block_tokens)
    : block_tokens_(block_tokens),
      free_(blocks),
      pages_(static_cast<size_t>(blocks)),
      contents_(static_cast<size_t>(blocks) * static_cast<size_t>(block_tokens)) {
  FS_CHECK(blocks > 0 && block_tokens > 0);
  by_key_.reserve(static_cast<size_t>(blocks));
  for (int32_t b = 0; b < blocks; ++b) link_newest(b);
}

int32_t KvPages::take() {
  if (oldest_ < 0) return -1;
  const int32_t block = oldest_;
  forget(block);
  hold(block);
  return block;
}

void KvPages::release(int32_t block) {
  Page& p = page(block);
  FS_CHECK(p.holders > 0);
  if (--p.holders > 0) return;
  ++free_;
  if (p.text != 0)
    link_newest(block);
  else
    link_oldest(block);
}

void KvPages::share_prefix(std::span<const int32_t> tokens, std::vector<int32_t>& blocks) {
  const size_t size = static_cast<size_t>(block_tokens_);
  uint64_t text = 0;
  for (size_t end = size; end < tokens.size(); end += size) {
    const int32_t block = find(text, tokens.subspan(end - size, size));
    if (block < 0) return;
    hold(block);
    blocks.push_back(block);
    text = page(block).text;
  }
}

KvPages::Prefix KvPages::find_prefix(std::span<const int32_t> tokens) const {
  const size_t size = static_cast<size_t>(block_tokens_);
  Prefix found;
  uint64_t text = 0;
  for (size_t end = size; end < tokens.size(); end += size) {
    const int32_t block = find(text, tokens.subspan(end - size, size));
    if (block < 0) break;
    ++found.blocks;
    if (page(block).holders == 0) ++found.of_them_free;
    text = page(block).text;
  }
  return found;
}

void KvPages::remember(int32_t block, int32_t before, std::span<const int32_t> content) {
  FS_CHECK(content.size() == static_cast<size_t>(block_tokens_));
  Page& p = page(block);
  FS_CHECK(p.holders > 0);
  const uint64_t text_before = before < 0 ? 0 : page(before).text;
  if (p.text != 0 || (before >= 0 && text_before == 0)) return;
  const uint64_t key = hash64(std::as_bytes(content), text_before);
  if (!by_key_.try_emplace(key, block).second) return;
  p.text = next_text_++;
  p.text_before = text_before;
  p.key = key;
  std::copy(content.begin(), content.end(),
            contents_.begin() + static_cast<long>(block) * block_tokens_);
}

void KvPages::forget_all() {
  FS_CHECK(free_ == blocks());
  for (int32_t b = 0; b < blocks(); ++b) forget(b);
}

int32_t KvPages::find(uint64_t text_before, std::span<const int32_t> content) const {
  const auto it = by_key_.find(hash64(std::as_bytes(content), text_before));
  if (it == by_key_.end() || page(it->second).text_before != text_before) return -1;
  const auto held = contents_.begin() + static_cast<long>(it->second) * block_tokens_;
  return std::equal(content.begin(), content.end(), held) ? it->second : -1;
}

void KvPages::hold(int32_t block) {
  Page& p = page(block);
  if (p.holders++ > 0) return;
  unlink(block);
  --free_;
}

void KvPages::unlink(int32_t block) {
  Page& p = page(block);
  (p.older < 0 ? oldest_ : page(p.older).newer) = p.newer;
  (p.newer < 0 ? newest_ : page(p.newer).older) = p.older;
  p.older = p.newer = -1;
}

void KvPages::link_newest(int32_t block) {
  page(block).older = newest_;
  (newest_ < 0 ? oldest_ : page(newest_).newer) = block;
  newest_ = block;
}

void KvPages::link_oldest(int32_t block) {
  page(block).newer = oldest_;
  (oldest_ < 0 ? newest_ : page(oldest_).older) = block;
  oldest_ = block;
}

void KvPages::forget(int32_t block) {
  Page& p = page(block);
  if (p.text == 0) return;
  by_key_.erase(p.key);
  p.text = p.text_before = p.key = 0;
}

}  // namespace fastserve
