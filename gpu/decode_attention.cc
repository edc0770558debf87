// Attention over the paged cache: which kernel, and how it is cut into blocks.
#include "gpu/kernels/decode_attention.cuh"

#include <algorithm>

#include "gpu/decode_ops.h"
#include "gpu/decode_run.h"
#include "gpu/kernels/tile_attention.cuh"
#include "gpu/kv_cache.h"
#include "gpu/launch.h"

namespace fastserve::gpu {
namespace {

/// Joins the parts that blocks left.
///
/// Grid: (rows, heads). Block: kJoinThreads. Shared: kJoinShared.
/// Bits: those of join() and joined() part after part.
__global__ void __launch_bounds__(kJoinThreads) join_parts(DecodeAttentionArguments p, int each) {
  FS_SHARED(float, memory);
  let_next_begin();
  wait_for_previous();
  join_head(p, int(blockIdx.x), int(blockIdx.y), each, memory);
}

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

/// Rows of a batch by blocks: up to `most` neighbours of a sequence in each.
TileSpans spans_of(std::span<const Segment> segments, int rows, int most) {
  TileSpans spans{};
  int next = 0, blocks = 0;
  const auto add = [&](int end, int each) {
    if (end <= next) return;
    spans.of[spans.count++] = {blocks, next, end - next, each};
    blocks += (end - next + each - 1) / each;
    next = end;
  };
  if (most > 1)
    for (const Segment& s : segments) {
      if (spans.count + 3 > TileSpans::kMost) break;  // the rest have a block each
      if (s.rows < 2 || s.first_row < next) continue;
      add(s.first_row, 1);
      add(s.first_row + s.rows, most);
    }
  add(rows, 1);
  return spans;
}

/// How attention is cut into blocks. No row's bits depend on it, but for `tiled`.
struct AttendPlan {
  AttendPlan(const DeviceProperties& card, const DecodeAttention& op, int rows, int reach);

  bool tiled;    ///< on tensor cores: keys and values are halves or codes, and rows whole 16 bytes
  bool alone;    ///< no two rows are of one sequence
  int together;  ///< query heads of a block
  int used;      ///< rows of queries of a block
  int stages;    ///< steps of a warp in shared memory
  TileSpans spans;
  int each, parts;  ///< positions of a part, and parts of the longest row
  int units;        ///< parts that a block of tile_attend takes, where they are split
  dim3 grid;
  size_t partials;  ///< floats; 0: a block walks all parts of its rows
};

AttendPlan::AttendPlan(const DeviceProperties& card, const DecodeAttention& op, int rows,
                       int reach) {
  const int dim = op.shape.head_dim, group = op.shape.heads / op.shape.kv_heads;
  const KvType type = op.cache->shape().type;
  const int number = type == KvType::kInt8 ? 1 : 2;
  tiled = type != KvType::kFloat32 && dim * number % 16 == 0;
  alone = !op.segments.empty() &&
          std::ranges::all_of(op.segments, [](const Segment& s) { return s.rows == 1; });
  together = group == 1 ? 1 : kAttendHeads;
  used = stages = 1;
  if (tiled) {
    // Cards with less shared memory keep less of it there.
    const auto fits = [&](int queries) {
      return tile_bytes(number, tile_dim(dim), stages, queries) <= card.shared_memory;
    };
    int most = kTileRows;
    for (stages = 2; !fits(most) && stages > 1;) --stages;
    while (!fits(most) && most > 1) most /= 2;
    together = std::min(group, most);
    used = alone ? together : most / together * together;
  }
  spans = spans_of(op.segments, rows, tiled ? used / together : 1);
  each = tiled ? kTileUnit : kChunk;
  parts = (reach + each - 1) / each;
  const TileSpan& last = spans.of[spans.count - 1];
  const auto blocks = static_cast<unsigned>(last.block + (last.rows + last.each - 1) / last.each);
  const auto heads = static_cast<unsigned>(op.shape.kv_heads * ((group + together - 1) / together));
  partials = at(rows, op.shape.heads) * static_cast<size_t>(parts) * static_cast<size_t>(dim + 2);
  // Few rows of long sequences: a block a part, so that all multiprocessors read the cache, and all
  // of the time; two parts are walked sooner than joined by another kernel.
  const unsigned whole = blocks * heads, runs = 2 * static_cast<unsigned>(card.multiprocessors);
  const unsigned idle = (runs - whole % runs) % runs;
  const bool few = whole < runs || idle * 5 > whole + idle;
  if (parts <= 2 || !few || partials * sizeof(float) > kMostPartials) partials = 0;
  // A block of tile_attend turns and places its queries first, which takes as long as a part or
  // two: so no more of them than run at once.
  units = 1;
  if (tiled && partials > 0) {
    const int at_once = tile_blocks(tile_dim(dim)) * card.multiprocessors;
    units = std::max(1, (parts * static_cast<int>(whole) + at_once - 1) / at_once);
  }
  grid = dim3(blocks, heads, partials > 0 ? static_cast<unsigned>((parts + units - 1) / units) : 1);
}

template <class Kv>
void append(Runtime& runtime, const DecodeAttentionArguments& p) {
  const auto items = static_cast<unsigned>(p.rows * (p.heads + 2 * p.kv_heads));
  launch_chained(runtime,
                 {"append_heads", {(items + kRotaryWarps - 1) / kRotaryWarps}, {32 * kRotaryWarps}},
                 append_heads<Kv>, p);
}

template <class Kv>
void start_tiles(Runtime& runtime, const AttendPlan& plan, const DecodeAttentionArguments& p) {
  const auto start = [&]<int kDim, int kStages>() {
    launch_chained(runtime,
                   {"tile_attend",
                    plan.grid,
                    {kTileThreads},
                    tile_bytes(sizeof(Kv), kDim, kStages, plan.used)},
                   tile_attend<Kv, kDim, kStages>, p, plan.spans, plan.together);
  };
  if (tile_dim(p.head_dim) == 64) return start.template operator()<64, 2>();
  if (tile_dim(p.head_dim) == 128) return start.template operator()<128, 2>();
  if (plan.stages == 2) return start.template operator()<256, 2>();
  start.template operator()<256, 1>();
}

template <class Kv>
void start_attention(Runtime& runtime, const AttendPlan& plan, const DecodeAttentionArguments& p) {
  if (!p.appends) append<Kv>(runtime, p);
  if constexpr (sizeof(Kv) < 4)
    if (plan.tiled) return start_tiles<Kv>(runtime, plan, p);
  const auto start = [&]<int kWide, int kHeads>() {
    using Block = AttendBlock<Kv, kWide, kHeads>;
    launch_chained(runtime,
                   {"decode_attend", plan.grid, {kAttendThreads}, Block::shared(p.head_dim)},
                   decode_attend<Kv, kWide, kHeads>, p);
  };
  const auto wide = [&]<int kHeads>() {
    if (p.head_dim % 4 == 0) return start.template operator()<4, kHeads>();
    start.template operator()<1, kHeads>();
  };
  if (plan.together == 1) return wide.template operator()<1>();
  wide.template operator()<kAttendHeads>();
}

}  // namespace

void decode_attention(Runtime& runtime, Workspace& workspace, DecodeGathering* gathering,
                      const DecodeAttention& op) {
  auto& cache = static_cast<GpuKvCache&>(*op.cache);
  const KvShape& kv = cache.shape();
  const Batch batch(op.resident ? std::span<const Segment>() : op.segments);
  const int rows = op.resident ? op.resident->rows : static_cast<int>(batch.rows.size());
  const int reach = op.resident ? op.resident->reach : batch.reach, dim = op.shape.head_dim;
  if (rows == 0) return;
  FS_CHECK(dim <= 2 * kAttendThreads);
  const AttendPlan plan(runtime.properties(), op, rows, reach);
  const size_t scratch = Workspace::room<DecodeRow>(batch.rows.size()) +
                         Workspace::room<int32_t>(batch.blocks.size()) +
                         Workspace::room<float>(plan.partials);
  if (gathering && !workspace.has(scratch)) gathering->flush();  // it may use what there is
  if (!workspace.begin(scratch)) return;
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
      .block_tokens = Divisor::of(kv.block_tokens),
      .rope_table = op.rope_table,
      .q_norm = op.q_norm,
      .k_norm = op.k_norm,
      .epsilon = op.epsilon,
      .window = op.window,
      .scale = op.scale,
      .out = op.out,
      .partials = plan.partials > 0 ? workspace.take<float>(plan.partials) : nullptr,
      .chunks = plan.parts,
      .units = plan.units,
      .appends = plan.tiled && plan.alone};
  if (gathering) {
    if (op.resident && plan.tiled && plan.stages == 2 &&
        gathering->add(arguments, {.heads = plan.together,
                                   .parts = static_cast<int>(plan.grid.y),
                                   .turns = static_cast<int>(plan.grid.z),
                                   .each = plan.each,
                                   .codes = kv.type == KvType::kInt8}))
      return;
    gathering->flush();
  }
  if (kv.type == KvType::kInt8)
    start_attention<int8_t>(runtime, plan, arguments);
  else if (kv.type == KvType::kFloat16)
    start_attention<Float16>(runtime, plan, arguments);
  else
    start_attention<float>(runtime, plan, arguments);
  if (plan.partials > 0)
    launch_chained(runtime,
                   {"join_parts",
                    {static_cast<unsigned>(rows), static_cast<unsigned>(op.shape.heads)},
                    {kJoinThreads},
                    kJoinShared},
                   join_parts, arguments, plan.each);
}

}  // namespace fastserve::gpu
