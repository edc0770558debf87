// How attention is shared out: items are groups of a segment's tokens for one key head.
#include <algorithm>

#include "base/check.h"
#include "cpu/decode/cpu_decode_ops.h"

namespace fastserve {
namespace {

/// Tokens of a segment that one pass over a key head serves together.
int group_tokens(const DecodeAttention& op, int most_rows) {
  return std::max(1, most_rows / (op.shape.heads / op.shape.kv_heads));
}

}  // namespace

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
    const size_t key = block * cache.key_block() + static_cast<size_t>(tile * 16 * width + lane);
    const size_t value =
        block * cache.value_block() + static_cast<size_t>((tile * 16 + lane) * layout.wide);
    task.key_slot = cache.keys(op.layer, head) + key * cache.element_bytes();
    task.value_slot = cache.values(op.layer, head) + value * cache.element_bytes();
    kernels_.append(task);
  }
}

/// Attention of tokens [from, to) of a segment for the query heads of one key head.
void CpuDecodeOps::attend_rows(const DecodeAttention& op, const Segment& segment, int head,
                               int from, int to, Lane& lane) {
  auto& cache = static_cast<PagedCache&>(*op.cache);
  const int width = op.shape.head_dim, shared = op.shape.heads / op.shape.kv_heads;
  lane.scratch.reserve(attend_scratch(cache.layout()));
  AttendTask task{};
  task.layout = &cache.layout();
  task.keys = cache.keys(op.layer, head);
  task.values = cache.values(op.layer, head);
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
  const int heads = op.shape.kv_heads, tokens = group_tokens(op, kernels_.attend_rows);
  bool single = true;  // every segment is one group
  segment_items_.assign(1, 0);
  for (const Segment& segment : op.segments) {
    FS_CHECK(segment.blocks.size() * static_cast<size_t>(shape.block_tokens) >=
             static_cast<size_t>(segment.position) + static_cast<size_t>(segment.rows));
    single = single && segment.rows <= tokens;
    segment_items_.push_back(segment_items_.back() +
                             int64_t{(segment.rows + tokens - 1) / tokens} * heads);
  }
  const auto count = segment_items_.back();

  // A group attends to what earlier groups of its segment append, so those come first: in a run of
  // their own, unless each segment is one group.
  if (!single)
    lanes_.run(count, [&](int64_t item, int) {
      const auto after = std::upper_bound(segment_items_.begin(), segment_items_.end(), item);
      const Segment& segment = op.segments[static_cast<size_t>(after - segment_items_.begin() - 1)];
      const auto at = static_cast<int>(item - *(after - 1));
      const int from = at / heads * tokens;
      append_rows(op, segment, at % heads, from, std::min(segment.rows, from + tokens));
    });
  lanes_.run(count, [&](int64_t item, int lane) {
    const auto after = std::upper_bound(segment_items_.begin(), segment_items_.end(), item);
    const Segment& segment = op.segments[static_cast<size_t>(after - segment_items_.begin() - 1)];
    const auto at = static_cast<int>(item - *(after - 1));
    const int groups = (segment.rows + tokens - 1) / tokens;
    // A head at a time, so that its keys stay in cache; the longest groups first.
    const int head = at / groups, from = (groups - 1 - at % groups) * tokens;
    const int to = std::min(segment.rows, from + tokens);
    if (single) append_rows(op, segment, head, from, to);
    attend_rows(op, segment, head, from, to, lane_[static_cast<size_t>(lane)]);
  });
}

}  // namespace fastserve
