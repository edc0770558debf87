// How attention is shared out: items are groups of a segment's tokens for one key head.
#include <algorithm>

#include "base/check.h"
#include "cpu/decode/cpu_decode_ops.h"

namespace fastserve {
namespace {

constexpr int kTile = 16;         // slots that share cache lines
constexpr int kItemsPerLane = 8;  // when segments are many

/// Tokens of a segment that one pass over a key head serves together.
int group_tokens(const DecodeAttention& op, int most_rows) {
  return std::max(1, most_rows / (op.shape.heads / op.shape.kv_heads));
}

/// Tiles of positions that the segment's new tokens touch.
int touched_tiles(const Segment& segment) {
  return (segment.position + segment.rows - 1) / kTile - segment.position / kTile + 1;
}

}  // namespace

void CpuDecodeOps::SegmentItems::add(int64_t items) { first_.push_back(first_.back() + items); }

std::pair<size_t, int> CpuDecodeOps::SegmentItems::find(int64_t item) const {
  const auto after = std::upper_bound(first_.begin(), first_.end(), item);
  return {static_cast<size_t>(after - first_.begin() - 1), static_cast<int>(item - *(after - 1))};
}

/// Norm, rotation and append of tokens [from, to) of a segment, for one key head and its queries.
void CpuDecodeOps::append_rows(const DecodeAttention& op, const Segment& segment, int head,
                               int from, int to) {
  auto& cache = static_cast<PagedCache&>(*op.cache);
  const KvLayout& layout = cache.layout();
  const int width = op.shape.head_dim, shared = op.shape.heads / op.shape.kv_heads;
  AppendTask task{};
  task.layout = &layout;
  task.q_heads = shared;
  task.q_norm = op.q_norm;
  task.k_norm = op.k_norm;
  task.epsilon = op.epsilon;
  task.q_scale = op.scale;
  for (int token = from; token < to; token++) {
    const int position = segment.position + token;
    float* row = op.qkv + static_cast<size_t>(segment.first_row + token) *
                              static_cast<size_t>(op.shape.width());
    task.q = row + head * shared * width;
    task.k = row + (op.shape.heads + head) * width;
    task.v = row + (op.shape.heads + op.shape.kv_heads + head) * width;
    if (op.rope_table != nullptr)
      task.table = op.rope_table + static_cast<size_t>(position) * static_cast<size_t>(width);
    const auto block =
        static_cast<size_t>(segment.blocks[static_cast<size_t>(position / layout.block_tokens)]);
    const int slot = position % layout.block_tokens, tile = slot / 16, lane = slot % 16;
    const size_t key = block * cache.key_block() + static_cast<size_t>(tile * layout.key_tile());
    const size_t value =
        block * cache.value_block() + static_cast<size_t>(tile * layout.value_tile());
    std::byte* const keys = cache.keys(op.layer, head) + key * cache.element_bytes();
    std::byte* const values = cache.values(op.layer, head) + value * cache.element_bytes();
    task.key_slot = keys + static_cast<size_t>(layout.header + lane) * cache.element_bytes();
    task.value_slot =
        values + static_cast<size_t>(layout.header + lane * layout.wide) * cache.element_bytes();
    task.key_scale = reinterpret_cast<float*>(keys) + lane;
    task.value_scale = reinterpret_cast<float*>(values) + lane;
    kernels_.append(task);
  }
}

/// Attention of tokens [from, to) of a segment for the query heads of one key head. The keys of
/// `next_head` are fetched meanwhile; -1: none.
void CpuDecodeOps::attend_rows(const DecodeAttention& op, const Segment& segment, int head,
                               int next_head, int from, int to, Lane& lane) {
  auto& cache = static_cast<PagedCache&>(*op.cache);
  const int width = op.shape.head_dim, shared = op.shape.heads / op.shape.kv_heads;
  lane.scratch.reserve(attend_scratch(cache.layout()));
  AttendTask task{};
  task.layout = &cache.layout();
  task.keys = cache.keys(op.layer, head);
  task.values = cache.values(op.layer, head);
  if (next_head >= 0) task.next_keys = cache.keys(op.layer, next_head);
  task.key_block = cache.key_block();
  task.value_block = cache.value_block();
  task.blocks = segment.blocks.data();
  task.scratch = lane.scratch.data();
  for (int token = from; token < to; token++) {
    const auto row = static_cast<size_t>(segment.first_row + token);
    const int position = segment.position + token;
    for (int h = head * shared; h < (head + 1) * shared; h++) {
      const auto r = static_cast<size_t>(task.rows++);
      task.q[r] = op.qkv + row * static_cast<size_t>(op.shape.width()) + h * width;
      task.out[r] = op.out + row * static_cast<size_t>(op.shape.heads * width) + h * width;
      task.last[r] = position + 1;
      task.first[r] = op.window > 0 ? std::max(0, position + 1 - op.window) : 0;
      if (task.rows < kernels_.attend_rows) continue;
      kernels_.attend(task);
      task.rows = 0;
    }
  }
  if (task.rows > 0) kernels_.attend(task);
}

void CpuDecodeOps::attention(const DecodeAttention& op) {
  const KvShape& shape = op.cache->shape();
  FS_CHECK(op.shape.kv_heads == shape.kv_heads && op.shape.head_dim == shape.head_dim);
  FS_CHECK(op.shape.heads % op.shape.kv_heads == 0 && op.layer < shape.layers);
  const int tokens = group_tokens(op, kernels_.attend_rows);
  bool single = true;  // every segment is one group
  for (const Segment& segment : op.segments) {
    FS_CHECK(segment.blocks.size() * static_cast<size_t>(shape.block_tokens) >=
             static_cast<size_t>(segment.position) + static_cast<size_t>(segment.rows));
    single = single && segment.rows <= tokens;
  }
  if (single)
    attend_whole(op);
  else
    attend_groups(op, tokens);
}

/// Each segment is one group, so whoever appends its tokens also attends to them. When there is
/// enough to share, an item is several heads, each of which can fetch the next one's keys.
void CpuDecodeOps::attend_whole(const DecodeAttention& op) {
  const int heads = op.shape.kv_heads;
  const auto segments = static_cast<int64_t>(op.segments.size());
  const int64_t fair = segments * heads / (int64_t{lanes_.lanes()} * kItemsPerLane);
  const int together = static_cast<int>(std::clamp<int64_t>(fair, 1, heads));
  const int parts = (heads + together - 1) / together;
  lanes_.run(segments * parts, [&](int64_t item, int lane) {
    const Segment& segment = op.segments[static_cast<size_t>(item / parts)];
    const int first = static_cast<int>(item % parts) * together;
    const int end = std::min(heads, first + together);
    for (int head = first; head < end; head++) {
      append_rows(op, segment, head, 0, segment.rows);
      attend_rows(op, segment, head, head + 1 < end ? head + 1 : -1, 0, segment.rows,
                  lane_[static_cast<size_t>(lane)]);
    }
  });
}

/// A group attends to what earlier groups of its segment append, so those come first, in a run of
/// their own.
void CpuDecodeOps::attend_groups(const DecodeAttention& op, int tokens) {
  const int heads = op.shape.kv_heads;
  attend_items_.clear();
  append_items_.clear();
  for (const Segment& segment : op.segments) {
    attend_items_.add(int64_t{(segment.rows + tokens - 1) / tokens} * heads);
    append_items_.add(int64_t{touched_tiles(segment)} * heads);
  }
  // A tile is one lane's: neighbouring keys lie in the same cache lines.
  lanes_.run(append_items_.count(), [&](int64_t item, int) {
    const auto [index, at] = append_items_.find(item);
    const Segment& segment = op.segments[index];
    const int tile = segment.position / kTile + at / heads;
    const int from = std::max(0, tile * kTile - segment.position);
    const int to = std::min(segment.rows, (tile + 1) * kTile - segment.position);
    append_rows(op, segment, at % heads, from, to);
  });
  lanes_.run(attend_items_.count(), [&](int64_t item, int lane) {
    const auto [index, at] = attend_items_.find(item);
    const Segment& segment = op.segments[index];
    const int groups = (segment.rows + tokens - 1) / tokens;
    // A head at a time, so that its keys stay in cache; the longest groups first.
    const int head = at / groups, from = (groups - 1 - at % groups) * tokens;
    const int to = std::min(segment.rows, from + tokens);
    attend_rows(op, segment, head, -1, from, to, lane_[static_cast<size_t>(lane)]);
  });
}

}  // namespace fastserve
