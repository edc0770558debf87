// Operations of a decode step one after another in one kernel, whose blocks stay and meet between
// them.
//
// What a kernel of its own for each operation waits for at its beginning, blocks that stay have
// behind them: a ring of weights goes on from one product to the next, so that memory is read while
// the blocks meet, prepare activations and attend.
#pragma once

#include "gpu/kernels/decode_product.cuh"
#include "gpu/kernels/decode_step.cuh"
#include "gpu/kernels/tile_attention.cuh"

namespace fastserve::gpu {

/// Products with weights of one format; attention over halves or codes in heads of up to 128.
template <PackedFormat kFormat, int kGroup>
struct DecodeRun {
  using Few = FewRows<kFormat, kGroup, 1, XPlace::kOwn>;
  using Unit = typename Few::Unit;
  static constexpr int kThreads = Few::kThreads;
  /// Of a ring: as many as leave attention its room on a card that gives a block 227 KiB.
  static constexpr int kStages = (130 << 10) / (kProductSlices * Few::kStageBytes);
  static constexpr int kRing = kProductSlices * kStages * Few::kStageBytes;
  static constexpr size_t kTable = kMostRunSteps * sizeof(RunWeights);
  static constexpr size_t kFixed = kRing + kTable + sizeof(DecodeStep);
  /// Of a product behind that, with `units` of inputs.
  static size_t product_room(int rows, int units) {
    return Few::shared(rows, units, Few::kStages) - size_t(Few::ring(Few::kStages));
  }
};

/// A warp's ring of units in shared memory, from product to product without a halt.
template <class Run>
struct RunRing {
  using Unit = typename Run::Unit;
  unsigned char* memory;
  const RunWeights* products;
  int count;
  int product, tile, unit, begin, end;  ///< to ask for next
  int stage, at;                        ///< to be filled next, and read next

  FS_DEVICE RunRing(unsigned char* shared, const RunWeights* table, int products_there)
      : memory(shared + threadIdx.x / 32 * Run::kStages * Run::Few::kStageBytes),
        products(table),
        count(products_there),
        product(-1),
        stage(0),
        at(0) {
    to_next_product();
    FS_NO_UNROLL
    for (int i = 0; i < Run::kStages - 1; ++i) fetch();
  }
  static FS_DEVICE int after(int one) { return one + 1 == Run::kStages ? 0 : one + 1; }
  /// The first unit of the next product that has one for this warp.
  FS_DEVICE void to_next_product() {
    const int warp = threadIdx.x / 32;
    tile = blockIdx.x;
    while (++product < count) {
      begin = unit = slice_begin(warp, products[product].units);
      end = slice_begin(warp + 1, products[product].units);
      if (begin < end && tile < products[product].tiles) return;
    }
  }
  FS_DEVICE void fetch() {
    if (product < count) {
      const RunWeights& of = products[product];
      fetch_unit<Unit>(memory + stage * Run::Few::kStageBytes, of.weights, of.scales,
                       uint32_t(tile) * uint32_t(of.units) + uint32_t(unit));
      stage = after(stage);
      if (++unit == end) {
        unit = begin;
        tile += gridDim.x;
        if (tile >= of.tiles) to_next_product();
      }
    }
    copy_commit();
  }
  /// The next unit, when it is there; another one is asked for. What else the thread copies
  /// meanwhile makes it wait for more, not for less.
  FS_DEVICE const unsigned char* next(const DecodeProductArguments&) {
    copy_wait<Run::kStages - 2>();
    __syncwarp();  // what other lanes fetched is there, too, and the unit before is done with
    fetch();
    const unsigned char* const found = memory + at * Run::Few::kStageBytes;
    at = after(at);
    return found;
  }
};

/// A block's wait for what other blocks did in the step before, once in each step.
struct GridWait {
  const uint32_t* arrived;
  uint32_t before;
  bool pending;  ///< not in the first step
  template <int kThreads>
  FS_DEVICE void wait() {
    if (pending) wait_for_grid<kThreads>(arrived, before);
    pending = false;
  }
};

template <class Run>
FS_DEVICE void run_product(const DecodeStep& step, RunRing<Run>& ring, unsigned char* memory,
                           GridWait grid) {
  using Few = typename Run::Few;
  const DecodeProductArguments p = step.product;
  if (int(blockIdx.x) >= p.tiles) return grid.wait<Run::kThreads>();
  const ProductRoom<Few> room(memory, p.units);
  const RowScales scales = tile_scales<Few>(p, blockIdx.x);
  room.prepare(step.prepare, p.rows, [&] { grid.wait<Run::kThreads>(); });
  __syncthreads();
  multiply_tiles(p, room, ring, scales);
}

/// What is far larger than a call: compiled once for all kernels of a file.
#if defined(__CUDACC__)
#define FS_APART __device__ __noinline__
#else
#define FS_APART inline
#endif

template <class Kv, int kDim>
FS_APART void run_attention(const DecodeStep& step, unsigned char* memory, GridWait grid) {
  const DecodeAttentionArguments p = step.attention;
  const int each = step.parts * step.turns;
  for (int item = blockIdx.x; item < p.rows * each; item += gridDim.x)
    attend_rows<Kv, kDim, 2>(p, item / each, 1, item % each / step.turns, item % step.turns,
                             step.heads, memory, [&] { grid.wait<kTileThreads>(); });
  grid.wait<kTileThreads>();
}

FS_DEVICE void run_attention(const DecodeStep& step, unsigned char* memory, const GridWait& grid) {
  if (threadIdx.x >= kTileThreads) return;
  const bool large = step.attention.head_dim > 64;
  if (step.codes && large) return run_attention<int8_t, 128>(step, memory, grid);
  if (step.codes) return run_attention<int8_t, 64>(step, memory, grid);
  if (large) return run_attention<Float16, 128>(step, memory, grid);
  run_attention<Float16, 64>(step, memory, grid);
}

FS_APART void run_join(const DecodeStep& step, unsigned char* memory, GridWait grid) {
  if (threadIdx.x >= kJoinThreads) return;
  grid.wait<kJoinThreads>();
  const DecodeAttentionArguments p = step.attention;
  for (int item = blockIdx.x; item < p.rows * p.heads; item += gridDim.x)
    join_head(p, item / p.heads, item % p.heads, step.each, reinterpret_cast<float*>(memory));
}

/// `steps` in order, each behind the ones before.
///
/// Grid:   any number of blocks, by launch_together(). Block: Run::kThreads.
/// Shared: Run::kFixed, and the room of the step that needs most.
/// Needs:  `weights`: those of the steps that are products, in order; PrepareArguments::fours and
///         DecodeAttentionArguments::appends; `arrived` as simt.h has it. While blocks are still at
///         a step, others read of the next what a kernel of a chain may read early.
/// Bits:   those of decode_product, tile_attend and join_parts.
template <class Run>
__global__ void __launch_bounds__(Run::kThreads, 1)
    decode_run(const DecodeStep* steps, int count, const RunWeights* weights, int products,
               uint32_t* arrived) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // cards before give a block too little memory
  FS_SHARED(unsigned char, memory);
  static_assert(sizeof(DecodeStep) % 16 == 0 && sizeof(RunWeights) % 4 == 0);
  static_assert(kTileThreads <= Run::kThreads && kJoinThreads <= Run::kThreads);
  constexpr int kPieces = sizeof(DecodeStep) / 16, kWords = sizeof(RunWeights) / 4;
  static_assert(kPieces <= Run::kThreads);
  auto* const table = reinterpret_cast<RunWeights*>(memory + Run::kRing);
  auto* const step = reinterpret_cast<DecodeStep*>(memory + Run::kRing + Run::kTable);
  unsigned char* const room = memory + Run::kFixed;
  const auto piece_of = [&](int i) { return reinterpret_cast<const uint4*>(steps + i); };
  for (int i = threadIdx.x; i < products * kWords; i += Run::kThreads)
    reinterpret_cast<uint32_t*>(table)[i] = reinterpret_cast<const uint32_t*>(weights)[i];
  if (threadIdx.x < kPieces) reinterpret_cast<uint4*>(step)[threadIdx.x] = piece_of(0)[threadIdx.x];
  __syncthreads();
  RunRing<Run> ring(memory, table, products);
  GridWait grid{arrived, 0, false};
  FS_NO_UNROLL
  for (int i = 0;;) {
    uint4 next{};  // asked for before it is needed
    if (i + 1 < count && threadIdx.x < kPieces) next = piece_of(i + 1)[threadIdx.x];
    switch (step->kind) {
      case DecodeStepKind::kProduct:
        run_product(*step, ring, room, grid);
        break;
      case DecodeStepKind::kAttend:
        run_attention(*step, room, grid);
        break;
      case DecodeStepKind::kJoin:
        run_join(*step, room, grid);
    }
    if (++i == count) break;
    grid = {arrived, arrive_at_grid(arrived), true};  // all of the block have read the step
    if (threadIdx.x < kPieces) reinterpret_cast<uint4*>(step)[threadIdx.x] = next;
    __syncthreads();
  }
#endif
}

}  // namespace fastserve::gpu
