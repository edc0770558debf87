#include "gpu/train_ops.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "gpu/kernels/convert.cuh"
#include "gpu/kernels/embed.cuh"
#include "gpu/kernels/optimiser.cuh"
#include "gpu/kernels/rotary.cuh"
#include "gpu/train_state.h"

namespace fastserve::gpu {

namespace {

/// Rows by what they look up: distinct keys, as they first come, and the rows of each in order. By
/// counting, and without a walk over the keys that do not come: a card may wait for whoever sorts.
class RowsByKey {
 public:
  void sort(std::span<const int32_t> of) {
    keys.clear();
    begin.clear();
    order.resize(of.size());
    for (const int32_t key : of) {
      const auto k = static_cast<size_t>(key);
      if (k >= counts_.size()) counts_.resize(k + 1);
      if (counts_[k]++ == 0) keys.push_back(key);
    }
    int32_t from = 0;
    for (const int32_t key : keys) {
      int32_t& count = counts_[static_cast<size_t>(key)];
      begin.push_back(from);
      from += std::exchange(count, from);  // from here on where the key's next row goes
    }
    begin.push_back(from);
    for (size_t row = 0; row < of.size(); ++row)
      order[static_cast<size_t>(counts_[static_cast<size_t>(of[row])]++)] =
          static_cast<int32_t>(row);
    for (const int32_t key : keys) counts_[static_cast<size_t>(key)] = 0;
  }
  std::vector<int32_t> keys, begin, order;

 private:
  std::vector<int32_t> counts_;  // of every key; 0 between two sorts
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
    if (rows == 0 || !state_.workspace.begin(Workspace::room<int32_t>(rows))) return;
    const int32_t* const tokens = state_.workspace.upload(op.tokens);
    const int32_t* const positions = op.position_table ? state_.tables.get(op.positions) : nullptr;
    const bool fours =
        op.channels % 4 == 0 && on_fours({op.token_table, op.position_table, op.out});
    constexpr int kRows = 4;
    launch(runtime_,
           {"embed_forward",
            {blocks_for(rows, kRows)},
            {channel_threads(fours ? op.channels / 4 : op.channels)}},
           fours ? gpu::embed_forward<float, 4, kRows> : gpu::embed_forward<float, 1, kRows>,
           tokens, positions, op.token_table, op.position_table, op.out, static_cast<int>(rows),
           op.channels);
  }

  void embed_backward(const EmbedBackward& op) override {
    add_rows(op.tokens, op.dx, op.dtoken_table, op.channels);
    if (op.dposition_table) add_rows(op.positions, op.dx, op.dposition_table, op.channels);
  }

  void norm_forward(const NormForward& op) override { gpu::norm_forward(state_, op); }
  void norm_backward(const NormBackward& op) override { gpu::norm_backward(state_, op); }

  void matmul_forward(const MatmulForward& op) override { gpu::matmul_forward(state_, op); }
  void matmul_backward_input(const MatmulBackwardInput& op) override {
    gpu::matmul_backward_input(state_, op);
  }
  bool norms_compute_dy() const override { return true; }
  bool sums_dx() const override { return true; }
  void matmul_backward_weight(const MatmulBackwardWeight& op) override {
    gpu::matmul_backward_weight(state_, op);
  }

  void rotary_forward(const RotaryForward& op) override {
    const RotaryArguments arguments = rotary_arguments(op);
    if (op.rows == 0 || (op.table && !arguments.positions)) return;
    if (op.in == op.out && turn(arguments, false)) return;
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
  void add_rows(std::span<const int32_t> of, const float* dx, float* table, int channels) {
    if (of.empty()) return;
    RowsByKey& rows = by_key_;
    rows.sort(of);
    const auto room = [](const std::vector<int32_t>& v) {
      return Workspace::room<int32_t>(v.size());
    };
    if (!state_.workspace.begin(room(rows.keys) + room(rows.begin) + room(rows.order))) return;
    const auto upload = [&](const std::vector<int32_t>& v) {
      return static_cast<const int32_t*>(state_.workspace.upload(std::span(v)));
    };
    const int32_t *keys = upload(rows.keys), *begin = upload(rows.begin),
                  *order = upload(rows.order);
    const bool fours = channels % 4 == 0 && on_fours({dx, table});
    const unsigned across =
        blocks_for(static_cast<size_t>(channels), static_cast<size_t>(fours ? 128 : 32));
    launch(
        runtime_,
        {"embed_backward", {blocks_for(rows.keys.size(), kEmbedWarps), across}, {32, kEmbedWarps}},
        fours ? gpu::embed_backward<4> : gpu::embed_backward<1>, keys, begin, order,
        static_cast<int>(rows.keys.size()), dx, table, channels);
  }

  /// False for heads that are not merely turned, or not as turn_heads needs them.
  bool turn(const RotaryArguments& arguments, bool back) {
    const int wide = 16 / static_cast<int>(state_.element_bytes());
    if (!arguments.table || arguments.q_norm || arguments.k_norm ||
        arguments.head_dim % (2 * wide) != 0 ||
        !on_fours({arguments.table, static_cast<float*>(arguments.out)}))
      return false;
    const int heads = (arguments.heads + arguments.kv_heads + kTurnHeads - 1) / kTurnHeads;
    const size_t threads = at(arguments.rows, heads * (arguments.head_dim / 2 / wide));
    if (threads >> 32 != 0) return false;
    with_type(state_.precision, [&]<class T>() {
      launch(runtime_, {"turn_heads", {blocks_for(threads, kTurnThreads)}, {kTurnThreads}},
             turn_heads<T>, arguments, back);
    });
    return true;
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

  /// On the card: what the pieces of `runs` are, and where those of each run begin.
  struct Squares {
    std::vector<FloatRun> runs;
    size_t pieces = 0;
    const SquaresPiece* on_device = nullptr;
    const int* begins = nullptr;
    double *partials = nullptr, *results = nullptr;
  };
  bool lay_out_squares(std::span<const FloatRun> runs) const;

  TrainState state_;
  Runtime& runtime_;
  RowsByKey by_key_;
  mutable std::mutex reducing_;  // sum_squares comes from several shards
  mutable Workspace reductions_;
  mutable Squares squares_;
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
  if (turn(arguments, true)) return;
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

/// A step's runs are those of the step before: what they are cut into stays on the card. False when
/// there is no room.
bool GpuTrainOps::lay_out_squares(std::span<const FloatRun> runs) const {
  const auto same = [](const FloatRun& a, const FloatRun& b) {
    return a.data == b.data && a.n == b.n;
  };
  if (std::equal(runs.begin(), runs.end(), squares_.runs.begin(), squares_.runs.end(), same))
    return true;
  squares_ = {};
  std::vector<SquaresPiece> pieces;
  std::vector<int> begins = {0};
  for (const FloatRun& run : runs) {
    for (size_t at = 0; at < run.n; at += kSquareElements)
      pieces.push_back(
          {run.data + at, static_cast<int>(std::min<size_t>(kSquareElements, run.n - at))});
    begins.push_back(static_cast<int>(pieces.size()));
  }
  if (!reductions_.begin(
          Workspace::room<double>(pieces.size()) + Workspace::room<double>(runs.size()) +
          Workspace::room<SquaresPiece>(pieces.size()) + Workspace::room<int>(begins.size())))
    return false;
  squares_.partials = reductions_.take<double>(pieces.size());
  squares_.results = reductions_.take<double>(runs.size());
  squares_.on_device = reductions_.upload(std::span<const SquaresPiece>(pieces));
  squares_.begins = reductions_.upload(std::span<const int>(begins));
  squares_.pieces = pieces.size();
  squares_.runs.assign(runs.begin(), runs.end());
  return true;
}

void GpuTrainOps::sums_of_squares(std::span<const FloatRun> runs, std::span<double> sums) const {
  std::fill(sums.begin(), sums.end(), 0.0);
  const std::lock_guard lock(reducing_);
  if (!lay_out_squares(runs) || squares_.pieces == 0) return;
  launch(
      runtime_,
      {"sum_squares", {static_cast<unsigned>(squares_.pieces)}, {kFlatThreads}, 8 * sizeof(double)},
      gpu::sum_squares, squares_.on_device, squares_.partials);
  launch(runtime_,
         {"sum_partials", {static_cast<unsigned>(runs.size())}, {kFlatThreads}, 8 * sizeof(double)},
         sum_partials, static_cast<const double*>(squares_.partials), squares_.begins,
         squares_.results);
  runtime_.copy_out(sums.data(), squares_.results, sums.size_bytes());
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
