// The paged cache, and attention over it.
#include "gpu/kernels/decode_attention.cuh"

#include <algorithm>

#include "gpu/decode_ops.h"
#include "gpu/kernels/move_blocks.cuh"
#include "gpu/launch.h"

namespace fastserve::gpu {
namespace {

/// [layer][keys, values][kv_head][block * block_tokens + slot][head_dim]; behind them, for int8,
/// the scales in the same order.
class GpuKvCache final : public KvCache {
 public:
  GpuKvCache(const KvShape& shape, Memory memory) : KvCache(shape), memory_(std::move(memory)) {}
  size_t bytes() const override { return memory_.bytes(); }
  static size_t slots(const KvShape& s) {
    return static_cast<size_t>(s.blocks) * static_cast<size_t>(s.block_tokens);
  }
  static size_t heads(const KvShape& s) { return static_cast<size_t>(s.kv_heads) * slots(s); }
  /// Bytes of a layer's keys, or values.
  static size_t half_layer(const KvShape& s) {
    const size_t element = s.type == KvType::kInt8 ? 1 : s.type == KvType::kFloat16 ? 2 : 4;
    return heads(s) * static_cast<size_t>(s.head_dim) * element;
  }
  /// Bytes in front of the scales.
  static size_t numbers(const KvShape& s) {
    return (2 * static_cast<size_t>(s.layers) * half_layer(s) + 255) / 256 * 256;
  }
  static size_t bytes_of(const KvShape& s) {
    const size_t scales = 2 * static_cast<size_t>(s.layers) * heads(s) * sizeof(float);
    return numbers(s) + (s.type == KvType::kInt8 ? scales : 0);
  }
  void* keys(int layer) { return at_half(2 * layer); }
  void* values(int layer) { return at_half(2 * layer + 1); }
  float* key_scales(int layer) { return scales_at(2 * layer); }
  float* value_scales(int layer) { return scales_at(2 * layer + 1); }

  /// Parts of the memory that hold each block in `count` pieces, `plane` bytes from one to the
  /// next.
  struct Planes {
    void* at;
    size_t count, plane, piece;
  };
  std::vector<Planes> planes() const {
    const size_t heads = static_cast<size_t>(shape_.kv_heads),
                 count = 2 * heads * size_t(shape_.layers);
    const auto of = [&](void* at, size_t plane) {
      return Planes{at, count, plane, plane / static_cast<size_t>(shape_.blocks)};
    };
    std::vector<Planes> all = {of(memory_.data(), half_layer(shape_) / heads)};
    if (shape_.type == KvType::kInt8)
      all.push_back(of(scales_at(0), slots(shape_) * sizeof(float)));
    return all;
  }

 private:
  void* at_half(int i) const {
    return static_cast<std::byte*>(memory_.data()) + static_cast<size_t>(i) * half_layer(shape_);
  }
  float* scales_at(int i) const {
    if (shape_.type != KvType::kInt8) return nullptr;
    return reinterpret_cast<float*>(static_cast<std::byte*>(memory_.data()) + numbers(shape_)) +
           static_cast<size_t>(i) * heads(shape_);
  }
  Memory memory_;
};

/// Rows of a batch whose segments lie on the host: where each stands, and the tables of its
/// sequences.
struct Batch {
  explicit Batch(std::span<const Segment> segments) {
    for (const Segment& s : segments) {
      const int table = static_cast<int>(blocks.size());
      blocks.insert(blocks.end(), s.blocks.begin(), s.blocks.end());
      const size_t end = static_cast<size_t>(s.first_row + s.rows);
      if (rows.size() < end) rows.resize(end);
      for (int t = 0; t < s.rows; ++t)
        rows[static_cast<size_t>(s.first_row + t)] = {s.position + t, table};
      if (s.rows > 0) reach = std::max(reach, s.position + s.rows);
    }
  }
  std::vector<DecodeRow> rows;
  std::vector<int32_t> blocks;
  int reach = 0;
};

constexpr size_t kMostPartials = 64 << 20;  ///< bytes
constexpr size_t kMostMoved = 32 << 20;     ///< bytes of blocks that are packed at once

}  // namespace

Result<std::unique_ptr<KvCache>> make_kv_cache(Runtime& runtime, const KvShape& shape) {
  FS_ASSIGN(Memory memory, Memory::allocate(runtime, GpuKvCache::bytes_of(shape)));
  return std::unique_ptr<KvCache>(new GpuKvCache(shape, std::move(memory)));
}

size_t kv_block_bytes(const KvCache& cache) {
  size_t bytes = 0;
  for (const auto& p : static_cast<const GpuKvCache&>(cache).planes()) bytes += p.count * p.piece;
  return (bytes + 15) / 16 * 16;
}

void move_kv_blocks(Runtime& runtime, Workspace& workspace, KvCache& cache,
                    std::span<const int32_t> blocks, void* host, bool out) {
  const size_t block_bytes = kv_block_bytes(cache);
  const size_t most = std::max<size_t>(1, kMostMoved / block_bytes);
  for (size_t first = 0; first < blocks.size(); first += most) {
    const auto part = blocks.subspan(first, std::min(most, blocks.size() - first));
    const size_t bytes = part.size() * block_bytes;
    if (!workspace.begin(Workspace::room<int32_t>(part.size()) +
                         Workspace::room<unsigned char>(bytes)))
      return;
    const int32_t* const which = workspace.upload(part);
    auto* const packed = workspace.take<unsigned char>(bytes);
    auto* const on_host = static_cast<std::byte*>(host) + first * block_bytes;
    if (!out) runtime.copy_in_async(packed, on_host, bytes);
    size_t at = 0;  // of a block's pieces in these planes
    for (const auto& planes : static_cast<GpuKvCache&>(cache).planes()) {
      const MoveArguments arguments{static_cast<unsigned char*>(planes.at),
                                    planes.plane,
                                    planes.piece,
                                    which,
                                    packed + at,
                                    block_bytes,
                                    out};
      const Launch how{"move_blocks",
                       {static_cast<unsigned>(planes.count), static_cast<unsigned>(part.size())},
                       {kMoveThreads}};
      const size_t sizes = planes.plane | planes.piece | block_bytes | at;
      launch(runtime, how,
             sizes % 16 == 0  ? move_blocks<uint4>
             : sizes % 4 == 0 ? move_blocks<uint32_t>
                              : move_blocks<unsigned char>,
             arguments);
      at += planes.count * planes.piece;
    }
    if (out) runtime.copy_out(on_host, packed, bytes);
  }
}

void decode_attention(Runtime& runtime, Workspace& workspace, const DecodeAttention& op) {
  auto& cache = static_cast<GpuKvCache&>(*op.cache);
  const KvShape& kv = cache.shape();
  const Batch batch(op.resident ? std::span<const Segment>() : op.segments);
  const int rows = op.resident ? op.resident->rows : static_cast<int>(batch.rows.size());
  const int reach = op.resident ? op.resident->reach : batch.reach, dim = op.shape.head_dim;
  if (rows == 0) return;
  FS_CHECK(dim <= 2 * kAttendThreads);
  const int chunks = (reach + kChunk - 1) / kChunk, group = op.shape.heads / op.shape.kv_heads;
  const int together = group == 1 ? 1 : kAttendHeads;
  const unsigned groups = static_cast<unsigned>((group + together - 1) / together);
  const unsigned whole = static_cast<unsigned>(rows * op.shape.kv_heads) * groups;
  const size_t partials =
      at(rows, op.shape.heads) * static_cast<size_t>(chunks) * static_cast<size_t>(dim + 2);
  // Few rows of long sequences: a block a chunk, so that all multiprocessors read the cache.
  const bool split = chunks > 2 &&  // two are walked sooner than joined by another kernel
                     whole < 2 * static_cast<unsigned>(runtime.properties().multiprocessors) &&
                     partials * sizeof(float) <= kMostPartials;
  if (!workspace.begin(Workspace::room<DecodeRow>(batch.rows.size()) +
                       Workspace::room<int32_t>(batch.blocks.size()) +
                       Workspace::room<float>(split ? partials : 0)))
    return;
  DecodeAttentionArguments arguments{
      .heads = op.shape.heads,
      .kv_heads = op.shape.kv_heads,
      .head_dim = dim,
      .rows = rows,
      .qkv = op.qkv,
      .row = op.resident ? op.resident->places : workspace.upload(std::span(batch.rows)),
      .blocks = op.resident ? op.resident->blocks : workspace.upload(std::span(batch.blocks)),
      .keys = cache.keys(op.layer),
      .values = cache.values(op.layer),
      .key_scales = cache.key_scales(op.layer),
      .value_scales = cache.value_scales(op.layer),
      .slots = GpuKvCache::slots(kv),
      .block_tokens = kv.block_tokens,
      .rope_table = op.rope_table,
      .q_norm = op.q_norm,
      .k_norm = op.k_norm,
      .epsilon = op.epsilon,
      .window = op.window,
      .scale = op.scale,
      .out = op.out,
      .partials = split ? workspace.take<float>(partials) : nullptr,
      .chunks = chunks,
      .appends = false};
  const unsigned n = static_cast<unsigned>(rows);
  const unsigned items = n * static_cast<unsigned>(op.shape.heads + 2 * op.shape.kv_heads);
  const dim3 grid(n, static_cast<unsigned>(op.shape.kv_heads) * groups,
                  split ? static_cast<unsigned>(chunks) : 1);
  // Rows of one sequence have to see each other's keys: another kernel appends them before.
  const bool alone = !op.segments.empty() &&
                     std::ranges::all_of(op.segments, [](const Segment& s) { return s.rows == 1; });
  const auto attend = [&]<class Kv, int kWide, int kHeads, bool kStaged>() {
    using Block = AttendBlock<Kv, kWide, kHeads, kStaged>;
    arguments.appends = kStaged && alone;
    if (!arguments.appends)
      launch_chained(
          runtime,
          {"append_heads", {(items + kRotaryWarps - 1) / kRotaryWarps}, {32 * kRotaryWarps}},
          append_heads<Kv>, arguments);
    launch_chained(runtime, {"decode_attend", grid, {kAttendThreads}, Block::shared(dim)},
                   decode_attend<Kv, kWide, kHeads, kStaged>, arguments);
  };
  const auto start = [&]<class Kv>() {
    // int8: sixteen at once would be 32 KiB of slices, and half the blocks a multiprocessor holds.
    constexpr int kWide = sizeof(Kv) == 4 ? 4 : 8;
    const auto wide = [&]<int kHeads>() {
      if (dim * sizeof(Kv) % 16 == 0 &&
          AttendBlock<Kv, kWide, kHeads, true>::shared(dim) <= runtime.properties().shared_memory)
        return attend.template operator()<Kv, kWide, kHeads, true>();
      attend.template operator()<Kv, kWide, kHeads, false>();
    };
    if (dim % kWide != 0)
      return together == 1 ? attend.template operator()<Kv, 1, 1, false>()
                           : attend.template operator()<Kv, 1, kAttendHeads, false>();
    if (together == 1) return wide.template operator()<1>();
    wide.template operator()<kAttendHeads>();
  };
  if (kv.type == KvType::kInt8)
    start.template operator()<int8_t>();
  else if (kv.type == KvType::kFloat16)
    start.template operator()<Float16>();
  else
    start.template operator()<float>();
  if (split)
    launch_chained(runtime,
                   {"join_chunks", {n, static_cast<unsigned>(op.shape.heads)}, {kAttendThreads}},
                   join_chunks, arguments);
}

}  // namespace fastserve::gpu
