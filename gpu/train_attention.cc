// Attention of packed sequences: flash kernels where the shape allows, plain ones elsewhere.
#include "gpu/kernels/attention_stats.cuh"
#include "gpu/kernels/flash_forward.cuh"
#include "gpu/kernels/flash_long.cuh"
#include "gpu/kernels/plain_attention.cuh"
#include "gpu/train_state.h"

namespace fastserve::gpu {
namespace {

AttentionArguments arguments_of(const AttentionForward& op) {
  return {.heads = op.shape.heads,
          .kv_heads = op.shape.kv_heads,
          .head_dim = op.shape.head_dim,
          .rows = op.starts.back(),
          .qkv = op.qkv,
          .out = op.out,
          .stats = op.stats,
          .window = op.window,
          .scale = op.scale,
          .dout = nullptr,
          .dqkv = nullptr,
          .delta = nullptr};
}

enum class TileOf { kQueries, kKeys };

/// Adds the sequences' tiles of `rows` rows, those with most to do first: what starts last, beside
/// idle multiprocessors, is then short.
void add_tiles(std::vector<AttentionTile>& tiles, std::span<const int32_t> starts, int rows,
               int window, TileOf of) {
  const auto begin = static_cast<std::ptrdiff_t>(tiles.size());
  for (size_t s = 0; s + 1 < starts.size(); ++s)
    for (int row = starts[s]; row < starts[s + 1]; row += rows)
      tiles.push_back({starts[s], starts[s + 1], row, 0});
  const auto work = [&](const AttentionTile& t) {
    const int last = std::min(t.first + rows, t.end);
    const int met = of == TileOf::kQueries ? last - t.start : t.end - t.first;
    return window > 0 ? std::min(met, window + rows) : met;
  };
  std::stable_sort(
      tiles.begin() + begin, tiles.end(),
      [&](const AttentionTile& a, const AttentionTile& b) { return work(a) > work(b); });
}

std::vector<int32_t> sequence_of_rows(std::span<const int32_t> starts) {
  std::vector<int32_t> of(static_cast<size_t>(starts.back()));
  for (size_t s = 0; s + 1 < starts.size(); ++s)
    for (int row = starts[s]; row < starts[s + 1]; ++row)
      of[static_cast<size_t>(row)] = static_cast<int32_t>(s);
  return of;
}

constexpr int kFlashMaxDim = 256;

/// Calls body.operator()<T, kDim>() with the smallest shape that holds head_dim.
template <class Body>
void with_flash_shape(Precision precision, int head_dim, const Body& body) {
  const auto shaped = [&]<class T>() {
    if (head_dim <= 32) return body.template operator()<T, 32>();
    if (head_dim <= 64) return body.template operator()<T, 64>();
    if (head_dim <= 96) return body.template operator()<T, 96>();
    if (head_dim <= 128) return body.template operator()<T, 128>();
    if (head_dim <= 192) return body.template operator()<T, 192>();
    return body.template operator()<T, 256>();
  };
  if (precision == Precision::kBFloat16) return shaped.template operator()<BFloat16>();
  return shaped.template operator()<Float16>();
}

/// Shapes that the flash kernels know, on cards whose blocks have the shared memory for them.
bool flash_takes(const TrainState& state, const AttentionForward& op, bool backward) {
  const int dim = op.shape.head_dim;
  const auto aligned = [](const void* rows) { return reinterpret_cast<uintptr_t>(rows) % 16 == 0; };
  if (state.precision == Precision::kFloat32 || dim % 8 != 0 || dim > kFlashMaxDim ||
      !aligned(op.qkv) || !aligned(op.out))
    return false;
  size_t shared = 0;
  with_flash_shape(state.precision, dim, [&]<class T, int kDim>() {
    shared = backward
                 ? std::max(QueryShape<T, kDim>::kShared, KeyGradients<T, kDim>::Shape::kShared)
                 : ForwardShape<T, kDim>::kShared;
  });
  return shared <= state.runtime.properties().shared_memory;
}

void flash_forward_on(TrainState& state, const AttentionForward& op) {
  const AttentionArguments arguments = arguments_of(op);
  with_flash_shape(state.precision, op.shape.head_dim, [&]<class T, int kDim>() {
    using Shape = ForwardShape<T, kDim>;
    std::vector<AttentionTile> tiles;
    add_tiles(tiles, op.starts, Shape::kRows, op.window, TileOf::kQueries);
    const AttentionTile* const on_device = state.tables.get(std::span(std::as_const(tiles)));
    if (on_device == nullptr) return;
    const dim3 grid(static_cast<unsigned>(tiles.size()), static_cast<unsigned>(op.shape.heads));
    launch(state.runtime, {"flash_forward", grid, {Shape::kThreads}, Shape::kShared},
           flash_forward<T, kDim>, arguments, on_device);
  });
}

/// Device copies of what the plain kernels look rows up in.
struct PlainTables {
  const int32_t *starts, *sequence_of;
  bool there() const { return starts != nullptr && sequence_of != nullptr; }
};
PlainTables plain_tables(TrainState& state, std::span<const int32_t> starts,
                         const std::vector<int32_t>& sequence_of) {
  return {state.tables.get(starts), state.tables.get(std::span(sequence_of))};
}

void start_delta(TrainState& state, const AttentionArguments& arguments) {
  const size_t items = static_cast<size_t>(arguments.rows) * static_cast<size_t>(arguments.heads);
  with_type(state.precision, [&]<class T>() {
    launch(state.runtime, {"attention_delta", {blocks_for(items, kDeltaWarps)}, {32 * kDeltaWarps}},
           attention_delta<T>, arguments);
  });
}

void flash_backward_on(TrainState& state, const AttentionArguments& arguments,
                       std::span<const int32_t> starts) {
  const unsigned heads = static_cast<unsigned>(arguments.heads);
  const unsigned kv_heads = static_cast<unsigned>(arguments.kv_heads);
  const size_t items = at(arguments.rows, arguments.heads);
  with_flash_shape(state.precision, arguments.head_dim, [&]<class T, int kDim>() {
    using Queries = QueryShape<T, kDim>;
    using Keys = typename KeyGradients<T, kDim>::Shape;
    std::vector<AttentionTile> tiles;
    add_tiles(tiles, starts, Queries::kRows, arguments.window, TileOf::kQueries);
    const size_t n = tiles.size();
    add_tiles(tiles, starts, Keys::kRows, arguments.window, TileOf::kKeys);
    const AttentionTile* const kept = state.tables.get(std::span(std::as_const(tiles)));
    if (kept == nullptr || !state.workspace.begin(Workspace::room<float2>(items))) return;
    float2* const pairs = state.workspace.take<float2>(items);
    const dim3 queries(static_cast<unsigned>(n), heads);
    launch(state.runtime, {"flash_dq", queries, {Queries::kThreads}, Queries::kShared},
           flash_dq<T, kDim>, arguments, pairs, kept);
    const dim3 keys(static_cast<unsigned>(tiles.size() - n), kv_heads);
    launch(state.runtime, {"flash_dkv", keys, {Keys::kThreads}, Keys::kShared},
           KeyGradients<T, kDim>::kKernel, arguments, pairs, kept + n);
  });
}

}  // namespace

void store_log_sums(Runtime& runtime, const float* log_sums, int sequences, int tokens, int heads,
                    float* stats) {
  const size_t items = at(sequences, tokens) * static_cast<size_t>(heads);
  launch(runtime, {"log_sums_to_stats", {blocks_for(items, kLogSumThreads)}, {kLogSumThreads}},
         log_sums_to_stats, log_sums, sequences, tokens, heads, stats);
}

void load_log_sums(Runtime& runtime, const float* stats, int sequences, int tokens, int heads,
                   float* log_sums) {
  const size_t items = at(sequences, tokens) * static_cast<size_t>(heads);
  launch(runtime, {"stats_to_log_sums", {blocks_for(items, kLogSumThreads)}, {kLogSumThreads}},
         stats_to_log_sums, stats, sequences, tokens, heads, log_sums);
}

void attention_forward(TrainState& state, const AttentionForward& op) {
  if (op.starts.back() == 0) return;
  if (state.attention != nullptr && state.attention->supports(op, state.precision))
    return state.attention->forward(op, state.precision);
  if (flash_takes(state, op, false)) return flash_forward_on(state, op);
  FS_CHECK(op.shape.head_dim <= kPlainMaxDim);
  const std::vector<int32_t> sequence_of = sequence_of_rows(op.starts);
  const PlainTables tables = plain_tables(state, op.starts, sequence_of);
  if (!tables.there()) return;
  const size_t items = sequence_of.size() * static_cast<size_t>(op.shape.heads);
  with_type(state.precision, [&]<class T>() {
    launch(state.runtime,
           {"plain_attention_forward", {blocks_for(items, kPlainWarps)}, {32 * kPlainWarps}},
           plain_attention_forward<T>, arguments_of(op), tables.starts, tables.sequence_of);
  });
}

void attention_backward(TrainState& state, const AttentionBackward& op) {
  if (op.forward.starts.back() == 0) return;
  if (state.attention != nullptr && state.attention->supports(op, state.precision))
    return state.attention->backward(op, state.precision);
  AttentionArguments arguments = arguments_of(op.forward);
  arguments.dout = op.dout;
  arguments.dqkv = op.dqkv;
  if (flash_takes(state, op.forward, true))
    return flash_backward_on(state, arguments, op.forward.starts);
  const std::vector<int32_t> sequence_of = sequence_of_rows(op.forward.starts);
  const size_t items = sequence_of.size() * static_cast<size_t>(arguments.heads);
  const PlainTables tables = plain_tables(state, op.forward.starts, sequence_of);
  if (!tables.there() || !state.workspace.begin(Workspace::room<float>(items))) return;
  arguments.delta = state.workspace.take<float>(items);
  start_delta(state, arguments);
  const size_t keys = sequence_of.size() * static_cast<size_t>(arguments.kv_heads);
  with_type(state.precision, [&]<class T>() {
    launch(state.runtime,
           {"plain_attention_dq", {blocks_for(items, kPlainWarps)}, {32 * kPlainWarps}},
           plain_attention_dq<T>, arguments, tables.starts, tables.sequence_of);
    launch(state.runtime,
           {"plain_attention_dkv", {blocks_for(keys, kPlainWarps)}, {32 * kPlainWarps}},
           plain_attention_dkv<T>, arguments, tables.starts, tables.sequence_of);
  });
}

}  // namespace fastserve::gpu
