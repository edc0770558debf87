#include "gpu/train_ops.h"

#include <algorithm>
#include <cmath>

#include "gpu/kernels/convert.cuh"
#include "gpu/kernels/embed.cuh"
#include "gpu/kernels/norm.cuh"
#include "gpu/kernels/optimiser.cuh"
#include "gpu/kernels/rotary.cuh"
#include "gpu/train_state.h"

namespace fastserve::gpu {

namespace {

/// Rows by what they look up: distinct keys in order, and the rows of each in order. By counting:
/// there are tens of thousands of rows, and the card waits for whoever sorts them.
struct RowsByKey {
  explicit RowsByKey(std::span<const int32_t> of) : order(of.size()) {
    const int32_t most = of.empty() ? -1 : *std::max_element(of.begin(), of.end());
    std::vector<int32_t> at(static_cast<size_t>(most) + 2);  // where the next row of a key goes
    for (const int32_t key : of) ++at[static_cast<size_t>(key) + 1];
    for (int32_t key = 0; key <= most; ++key) {
      const int32_t count = at[static_cast<size_t>(key) + 1], from = at[static_cast<size_t>(key)];
      at[static_cast<size_t>(key) + 1] = from + count;
      if (count == 0) continue;
      keys.push_back(key);
      begin.push_back(from);
    }
    begin.push_back(static_cast<int32_t>(of.size()));
    for (size_t row = 0; row < of.size(); ++row)
      order[static_cast<size_t>(at[static_cast<size_t>(of[row])]++)] = static_cast<int32_t>(row);
  }
  std::vector<int32_t> keys, begin, order;
};

unsigned channel_threads(int channels) {
  return std::clamp((static_cast<unsigned>(channels) + 31) / 32 * 32, 32u, 256u);
}

AdamWArguments adamw_arguments(const AdamW& op) {
  const double step = static_cast<double>(op.step), rate = op.learning_rate;
  const double correct1 = 1 - std::pow(static_cast<double>(op.beta1), step);
  const double correct2 = 1 - std::pow(static_cast<double>(op.beta2), step);
  return {.param = op.param,
          .m = op.m,
          .v = op.v,
          .grad = op.grad,
          .n = op.n,
          .beta1 = op.beta1,
          .beta2 = op.beta2,
          .epsilon = op.epsilon,
          .grad_scale = op.grad_scale,
          .decay = static_cast<float>(1 - rate * static_cast<double>(op.weight_decay)),
          .rate = static_cast<float>(rate / correct1),
          .inverse_correct2 = static_cast<float>(1 / std::sqrt(correct2))};
}

class GpuTrainOps final : public TrainOps {
 public:
  GpuTrainOps(Runtime& runtime, std::span<MatmulEngine* const> engines, AttentionEngine* attention,
              Precision precision)
      : state_(runtime, engines, precision, attention), runtime_(runtime), reductions_(runtime) {}

  Precision precision() const override { return state_.precision; }

  std::unique_ptr<TrainMatrix> make_matrix(int out, int in) override {
    const int ld = (in + 7) / 8 * 8;
    Result<Memory> memory = Memory::allocate(
        runtime_, static_cast<size_t>(out) * static_cast<size_t>(ld) * state_.element_bytes());
    if (!memory.ok()) runtime_.report(memory.error());
    return std::make_unique<GpuMatrix>(out, in, ld,
                                       memory.ok() ? std::move(memory).value() : Memory());
  }

  void pack(TrainMatrix& matrix, int row, int rows, const float* masters) const override {
    auto& to = static_cast<GpuMatrix&>(matrix);
    if (!to.data() || rows == 0) return;
    const int in = to.in(), ld = to.ld();
    with_type(state_.precision, [&]<class T>() {
      launch(runtime_, {"convert_rows", {static_cast<unsigned>(rows)}, {channel_threads(in)}},
             convert_rows<T>, masters + at(row, in), in, static_cast<T*>(to.data()) + at(row, ld),
             ld, in);
    });
  }

  void embed_forward(const EmbedForward& op) override {
    const size_t rows = op.tokens.size();
    if (rows == 0 || !state_.workspace.begin(2 * Workspace::room<int32_t>(rows))) return;
    const int32_t* const tokens = state_.workspace.upload(op.tokens);
    const int32_t* const positions =
        op.position_table ? state_.workspace.upload(op.positions) : nullptr;
    launch(runtime_,
           {"embed_forward", {static_cast<unsigned>(rows)}, {channel_threads(op.channels)}},
           gpu::embed_forward<float>, tokens, positions, op.token_table, op.position_table, op.out,
           op.channels);
  }

  void embed_backward(const EmbedBackward& op) override {
    add_rows(op.tokens, op.dx, op.dtoken_table, op.channels);
    if (op.dposition_table) add_rows(op.positions, op.dx, op.dposition_table, op.channels);
  }

  void norm_forward(const NormForward& op) override {
    if (op.rows == 0) return;
    const bool fours =
        op.channels % 4 == 0 && on_fours({op.x, op.weight, op.bias, static_cast<float*>(op.out)});
    const Launch how{
        "norm_forward", {blocks_for(static_cast<size_t>(op.rows), kNormWarps)}, {32 * kNormWarps}};
    with_type(state_.precision, [&]<class T>() {
      const auto kernel = !fours                    ? gpu::norm_forward<T, 1>
                          : op.channels <= 6 * 128  ? norm_forward_held<T, 6>
                          : op.channels <= 16 * 128 ? norm_forward_held<T, 16>
                                                    : gpu::norm_forward<T, 4>;
      launch(runtime_, how, kernel, op.x, op.weight, op.bias, op.epsilon,
             op.kind == NormKind::kLayerNorm, op.rows, op.channels, static_cast<T*>(op.out),
             op.stats);
    });
  }

  void norm_backward(const NormBackward& op) override {
    if (op.rows == 0) return;
    const unsigned blocks = blocks_for(static_cast<size_t>(op.rows), kNormBackwardRows);
    const int parts = static_cast<int>(blocks), wide = 2 * op.channels;
    const size_t partials = at(parts, wide), scratch = column_sum_scratch(parts, wide);
    if (!state_.workspace.begin(Workspace::room<float>(partials) + Workspace::room<float>(scratch)))
      return;
    float* const sums = state_.workspace.take<float>(partials);
    float* const room = state_.workspace.take<float>(scratch);
    const NormBackwardArguments arguments{op.dy,
                                          op.x,
                                          op.weight,
                                          op.stats,
                                          op.rows,
                                          op.channels,
                                          op.kind == NormKind::kLayerNorm,
                                          op.accumulate,
                                          op.dx,
                                          op.dx_compute,
                                          sums};
    const size_t shared = (static_cast<size_t>(wide) + 2 * kNormBackwardWarps) * sizeof(float);
    const bool fours = op.channels % 4 == 0 && on_fours({op.dy, op.x, op.weight, op.dx,
                                                         static_cast<float*>(op.dx_compute)});
    with_type(state_.precision, [&]<class T>() {
      const auto kernel = !fours                   ? gpu::norm_backward<T, 1>
                          : op.channels <= 6 * 128 ? norm_backward_held<T, 6>
                          : op.channels <= 8 * 128 ? norm_backward_held<T, 8>
                                                   : gpu::norm_backward<T, 4>;
      launch(runtime_, {"norm_backward", {blocks}, {32 * kNormBackwardWarps}, shared}, kernel,
             arguments);
    });
    const bool adjacent = op.dbias == op.dweight + op.channels;
    sum_columns_into(runtime_, Precision::kFloat32, sums, parts, adjacent ? wide : op.channels,
                     wide, op.dweight, true, room);
    if (op.dbias && !adjacent)
      sum_columns_into(runtime_, Precision::kFloat32, sums + op.channels, parts, op.channels, wide,
                       op.dbias, true, room);
  }

  void matmul_forward(const MatmulForward& op) override { gpu::matmul_forward(state_, op); }
  void matmul_backward_input(const MatmulBackwardInput& op) override {
    gpu::matmul_backward_input(state_, op);
  }
  void matmul_backward_weight(const MatmulBackwardWeight& op) override {
    gpu::matmul_backward_weight(state_, op);
  }

  void rotary_forward(const RotaryForward& op) override {
    const RotaryArguments arguments = rotary_arguments(op);
    if (op.rows == 0 || (op.table && !arguments.positions)) return;
    const size_t items =
        static_cast<size_t>(op.rows) * static_cast<size_t>(op.shape.heads + 2 * op.shape.kv_heads);
    with_type(state_.precision, [&]<class T>() {
      launch(runtime_, {"rotary_forward", {blocks_for(items, kRotaryWarps)}, {32 * kRotaryWarps}},
             gpu::rotary_forward<T>, arguments);
    });
  }

  void rotary_backward(const RotaryBackward& op) override;
  void attention_forward(const AttentionForward& op) override {
    gpu::attention_forward(state_, op);
  }
  void attention_backward(const AttentionBackward& op) override {
    gpu::attention_backward(state_, op);
  }
  void classifier_loss(const ClassifierLoss& op) override { gpu::classifier_loss(state_, op); }

  uint64_t scratch_version() const override { return state_.scratch_version(); }

  void adamw(const AdamW& op) const override;
  void add(const float* a, const float* b, float* out, size_t n) const override {
    launch(runtime_, {"add_floats", {blocks_for(n, 4 * kFlatThreads)}, {kFlatThreads}}, add_floats,
           a, b, out, n, on_fours({a, b, out}));
  }
  double sum_squares(const float* x, size_t n) const override {
    double sum = 0;
    const FloatRun run{x, n};
    sums_of_squares({&run, 1}, {&sum, 1});
    return sum;
  }
  void sums_of_squares(std::span<const FloatRun> runs, std::span<double> sums) const override;

 private:
  static bool on_fours(std::initializer_list<const float*> pointers) {
    return std::all_of(pointers.begin(), pointers.end(),
                       [](const float* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
  }

  void add_rows(std::span<const int32_t> of, const float* dx, float* table, int channels) {
    if (of.empty()) return;
    const RowsByKey rows(of);
    const auto room = [](const std::vector<int32_t>& v) {
      return Workspace::room<int32_t>(v.size());
    };
    if (!state_.workspace.begin(room(rows.keys) + room(rows.begin) + room(rows.order))) return;
    const auto upload = [&](const std::vector<int32_t>& v) {
      return static_cast<const int32_t*>(state_.workspace.upload(std::span(v)));
    };
    const int32_t *keys = upload(rows.keys), *begin = upload(rows.begin),
                  *order = upload(rows.order);
    launch(
        runtime_,
        {"embed_backward", {static_cast<unsigned>(rows.keys.size())}, {channel_threads(channels)}},
        gpu::embed_backward<float>, keys, begin, order, dx, table, channels);
  }

  /// Without positions though it has a table: they could not be had.
  RotaryArguments rotary_arguments(const RotaryForward& op) {
    return {op.shape.heads,
            op.shape.kv_heads,
            op.shape.head_dim,
            op.rows,
            op.in,
            op.out,
            op.table ? state_.tables.get(op.positions) : nullptr,
            op.table,
            op.q_norm,
            op.k_norm,
            op.epsilon,
            op.stats,
            nullptr};
  }

  TrainState state_;
  Runtime& runtime_;
  mutable std::mutex reducing_;  // sum_squares comes from several shards
  mutable Workspace reductions_;
};

void GpuTrainOps::rotary_backward(const RotaryBackward& op) {
  const RotaryForward& f = op.forward;
  if (f.rows == 0) return;
  const int blocks = static_cast<int>(blocks_for(static_cast<size_t>(f.rows), kRotaryBackwardRows));
  const int dim = f.shape.head_dim;
  const bool normed = f.q_norm || f.k_norm;
  const size_t partials = normed ? at(blocks, 2 * dim) : 0;
  const size_t scratch = normed ? column_sum_scratch(blocks, dim) : 0;
  RotaryArguments arguments = rotary_arguments(f);
  if (f.table && !arguments.positions) return;
  if (!state_.workspace.begin(Workspace::room<float>(partials) + Workspace::room<float>(scratch)))
    return;
  arguments.out = op.dqkv;
  if (normed) arguments.partials = state_.workspace.take<float>(partials);
  float* const room = state_.workspace.take<float>(scratch);
  const size_t shared = normed ? static_cast<size_t>(kRotaryWarps * 2 * dim) * sizeof(float) : 0;
  with_type(state_.precision, [&]<class T>() {
    launch(runtime_,
           {"rotary_backward", {static_cast<unsigned>(blocks)}, {32 * kRotaryWarps}, shared},
           gpu::rotary_backward<T>, arguments);
  });
  for (float* to : {op.dq_norm, op.dk_norm})
    if (to)
      sum_columns_into(runtime_, Precision::kFloat32,
                       arguments.partials + (to == op.dk_norm ? dim : 0), blocks, dim, 2 * dim, to,
                       true, room);
}

void GpuTrainOps::adamw(const AdamW& op) const {
  launch(runtime_, {"adamw", {blocks_for(op.n, 4 * kFlatThreads)}, {kFlatThreads}}, gpu::adamw,
         adamw_arguments(op), on_fours({op.param, op.m, op.v, op.grad}));
}

void GpuTrainOps::sums_of_squares(std::span<const FloatRun> runs, std::span<double> sums) const {
  std::vector<SquaresPiece> pieces;
  std::vector<int> begins = {0};
  for (const FloatRun& run : runs) {
    for (size_t at = 0; at < run.n; at += kSquareElements)
      pieces.push_back(
          {run.data + at, static_cast<int>(std::min<size_t>(kSquareElements, run.n - at))});
    begins.push_back(static_cast<int>(pieces.size()));
  }
  std::fill(sums.begin(), sums.end(), 0.0);
  const std::lock_guard lock(reducing_);
  if (pieces.empty() || !reductions_.begin(Workspace::room<double>(pieces.size()) +
                                           Workspace::room<double>(runs.size()) +
                                           Workspace::room<SquaresPiece>(pieces.size()) +
                                           Workspace::room<int>(begins.size())))
    return;
  double* const partials = reductions_.take<double>(pieces.size());
  double* const results = reductions_.take<double>(runs.size());
  const auto* const on_device =
      static_cast<const SquaresPiece*>(reductions_.upload(std::span<const SquaresPiece>(pieces)));
  const auto* const from =
      static_cast<const int*>(reductions_.upload(std::span<const int>(begins)));
  launch(
      runtime_,
      {"sum_squares", {static_cast<unsigned>(pieces.size())}, {kFlatThreads}, 8 * sizeof(double)},
      gpu::sum_squares, on_device, partials);
  launch(runtime_,
         {"sum_partials", {static_cast<unsigned>(runs.size())}, {kFlatThreads}, 8 * sizeof(double)},
         sum_partials, static_cast<const double*>(partials), from, results);
  runtime_.copy_out(sums.data(), results, sums.size_bytes());
}

}  // namespace

std::unique_ptr<TrainOps> make_train_ops(Runtime& runtime, std::span<MatmulEngine* const> engines,
                                         AttentionEngine* attention, Precision precision) {
  return std::make_unique<GpuTrainOps>(runtime, engines, attention, precision);
}

void adamw_with_copy(Runtime& runtime, const AdamW& op, BFloat16* copy, uint64_t seed,
                     uint64_t first) {
  launch(runtime, {"adamw_and_round", {blocks_for(op.n, kFlatThreads)}, {kFlatThreads}},
         adamw_and_round, adamw_arguments(op), copy, seed, first);
}

}  // namespace fastserve::gpu
