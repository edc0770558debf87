// The three products of a linear layer, and the classifier's loss on top of one.
#include <algorithm>
#include <utility>

#include "gpu/kernels/classifier.cuh"
#include "gpu/kernels/columns.cuh"
#include "gpu/train_state.h"

namespace fastserve::gpu {

namespace {

unsigned parts_of(int rows) {
  return rows <= kMostSumRows ? 1 : blocks_for(static_cast<size_t>(rows), kSumRows);
}

}  // namespace

void add_sums(Runtime& runtime, const float* partials, int parts, const JoinedSums& sums) {
  const auto start = [&]<int kWide>() {
    launch(runtime,
           {"join_column_sums",
            {blocks_for(static_cast<size_t>(sums.wide), size_t{kJoinLanes} * kWide)},
            {kJoinLanes, kJoinChains},
            kJoinShared<kWide>},
           join_column_sums<kWide>, partials, parts, sums);
  };
  if (sums.wide % 4 == 0 && on_fours({partials})) return start.template operator()<4>();
  start.template operator()<1>();
}

size_t column_sum_scratch(int rows, int cols) {
  const unsigned parts = parts_of(rows);
  if (parts <= 1) return 0;
  return at(static_cast<int>(parts), cols) + column_sum_scratch(static_cast<int>(parts), cols);
}

void sum_columns_into(Runtime& runtime, Precision precision, const void* in, int rows, int cols,
                      int ld, float* out, bool accumulate, float* scratch) {
  if (precision == Precision::kFloat32 && accumulate && rows <= kMostJoined && ld == cols)
    return add_sums(runtime, static_cast<const float*>(in), rows,
                    {.first = out, .channels = cols, .wide = cols});
  const unsigned parts = parts_of(rows);
  with_type(precision, [&]<class T>() {
    const auto start = [&]<int kWide>() {
      const unsigned across = blocks_for(static_cast<size_t>(cols), size_t{32} * kWide);
      const bool once = parts == 1;
      launch(runtime, {"sum_columns", {across, parts}, {32, 8}, kSumShared<kWide>},
             sum_columns<T, kWide>, static_cast<const T*>(in), rows, once ? rows : kSumRows, cols,
             ld, once ? out : scratch, cols, once && accumulate);
    };
    const bool fours =
        cols % 4 == 0 && ld % 4 == 0 && reinterpret_cast<uintptr_t>(in) % (4 * sizeof(T)) == 0;
    if (fours) return start.template operator()<4>();
    start.template operator()<1>();
  });
  if (parts == 1) return;
  sum_columns_into(runtime, Precision::kFloat32, scratch, static_cast<int>(parts), cols, cols, out,
                   accumulate, scratch + at(static_cast<int>(parts), cols));
}

void matmul_forward(TrainState& state, const MatmulForward& op) {
  const auto& w = static_cast<const GpuMatrix&>(*op.weight);
  constexpr ProductEpilogue kEpilogues[] = {ProductEpilogue::kStore, ProductEpilogue::kStoreFloat,
                                            ProductEpilogue::kAddResidual, ProductEpilogue::kGelu,
                                            ProductEpilogue::kSwiGlu};
  state.multiply({.kind = ProductKind::kForward,
                  .epilogue = kEpilogues[static_cast<size_t>(op.epilogue)],
                  .precision = state.precision,
                  .m = op.rows,
                  .n = w.out(),
                  .k = w.in(),
                  .a = op.x,
                  .b = w.data(),
                  .lda = op.x_ld,
                  .ldb = w.ld(),
                  .bias = op.bias,
                  .out = op.out,
                  .out_ld = op.out_ld,
                  .residual = op.residual,
                  .slope = op.slope,
                  .slope_ld = w.out()});
}

void matmul_backward_input(TrainState& state, const MatmulBackwardInput& op) {
  const auto& w = static_cast<const GpuMatrix&>(*op.weight);
  constexpr ProductEpilogue kEpilogues[] = {ProductEpilogue::kStore, ProductEpilogue::kStoreFloat,
                                            ProductEpilogue::kTimesSlope};
  Product product{.kind = ProductKind::kInputGrad,
                  .epilogue = kEpilogues[static_cast<size_t>(op.epilogue)],
                  .precision = state.precision,
                  .m = op.rows,
                  .n = w.in(),
                  .k = w.out(),
                  .a = op.dy,
                  .b = w.data(),
                  .lda = op.dy_ld,
                  .ldb = w.ld(),
                  .bias = op.bias,
                  .out = op.dx,
                  .out_ld = op.dx_ld,
                  .slope = const_cast<void*>(op.slope),
                  .slope_ld = op.dx_ld,
                  .slope_parts = op.slope_parts};
  if (op.dbias == nullptr || op.rows == 0) {
    state.multiply(product);
    return;
  }
  FS_CHECK(op.epilogue == InputGradEpilogue::kTimesSlope);
  const int cols = op.slope_parts * w.in();
  const int runs = static_cast<int>(blocks_for(static_cast<size_t>(op.rows), kSumRun));
  static_assert(kSumRun <= kSumRows);  // so that there is room for either way
  const size_t scratch = at(runs, cols) + column_sum_scratch(runs, cols);
  if (!state.workspace.begin(Workspace::room<float>(scratch))) return;
  product.sums = state.workspace.take<float>(scratch);
  if (state.multiply(product))
    return sum_columns_into(state.runtime, Precision::kFloat32, product.sums, runs, cols, cols,
                            op.dbias, true, product.sums + at(runs, cols));
  float* const sums = std::exchange(product.sums, nullptr);
  state.multiply(product);
  sum_columns_into(state.runtime, state.precision, op.dx, op.rows, cols, op.dx_ld, op.dbias, true,
                   sums);
}

void matmul_backward_weight(TrainState& state, const MatmulBackwardWeight& op) {
  state.multiply(
      {.kind = ProductKind::kWeightGrad,
       .epilogue = op.accumulate ? ProductEpilogue::kAddResidual : ProductEpilogue::kStoreFloat,
       .precision = state.precision,
       .m = op.out,
       .n = op.in,
       .k = op.rows,
       .a = op.dy,
       .b = op.x,
       .lda = op.dy_ld,
       .ldb = op.x_ld,
       .out = op.dweight,
       .out_ld = op.in,
       .residual = op.dweight});
  if (!op.dbias || op.rows == 0) return;
  const size_t scratch = column_sum_scratch(op.rows, op.out);
  if (!state.workspace.begin(Workspace::room<float>(scratch))) return;
  sum_columns_into(state.runtime, state.precision, op.dy, op.rows, op.out, op.dy_ld, op.dbias, true,
                   state.workspace.take<float>(scratch));
}

namespace {

/// Of the rows of logits that are there at a time where only losses are wanted.
constexpr size_t kLogitBytes = 256 << 20;

template <class T>
void start_classifier(Runtime& runtime, ClassifierArguments p, int rows) {
  constexpr int kWide = 16 / sizeof(T);
  const auto start = [&](int threads, auto* kernel) {
    launch(runtime,
           {"classifier_loss",
            {static_cast<unsigned>(rows)},
            {static_cast<unsigned>(threads)},
            kClassifierShared + static_cast<size_t>(p.held) * sizeof(T)},
           kernel, p);
  };
  if (p.ld % kWide != 0 || reinterpret_cast<uintptr_t>(p.logits) % 16 != 0)
    return start(kClassifierThreads, gpu::classifier_loss<T, 1, kClassifierThreads>);
  if (p.vocab < 8 * kLongThreads)
    return start(kClassifierThreads, gpu::classifier_loss<T, kWide, kClassifierThreads>);
  // What is read again for the gradient stays in shared memory, as much of it as lets two blocks
  // run side by side. A card keeps 1 KiB of it for each block.
  const size_t room = (runtime.properties().shared_memory - 1024) / 2 - kClassifierShared;
  if (p.gradient) p.held = std::min(p.ld, static_cast<int>(room / 16 * kWide));
  start(kLongThreads, gpu::classifier_loss<T, kWide, kLongThreads>);
}

/// The product of count rows from `row` on, into logits of `epilogue`'s type.
void multiply_by_head(TrainState& state, const ClassifierLoss& op, int row, int count,
                      ProductEpilogue epilogue, void* logits, int ld) {
  const auto& head = static_cast<const GpuMatrix&>(*op.head);
  state.multiply(
      {.kind = ProductKind::kForward,
       .epilogue = epilogue,
       .precision = state.precision,
       .m = count,
       .n = head.out(),
       .k = head.in(),
       .a = static_cast<const std::byte*>(op.x) + at(row, head.in()) * state.element_bytes(),
       .b = head.data(),
       .lda = head.in(),
       .ldb = head.ld(),
       .out = logits,
       .out_ld = ld});
}

/// Logits in the training's precision, which become their gradient where they lie: the product
/// writes and the loss reads half of what floats take. That of the target, on which a loss depends
/// most, is computed again in float.
void loss_with_gradient(TrainState& state, const ClassifierLoss& op, const int32_t* targets) {
  const auto& head = static_cast<const GpuMatrix&>(*op.head);
  multiply_by_head(state, op, 0, op.rows, ProductEpilogue::kStore, op.dlogits, op.dlogits_ld);
  const bool rounded = state.precision != Precision::kFloat32;
  with_type(state.precision, [&]<class T>() {
    start_classifier<T>(state.runtime,
                        {.logits = op.dlogits,
                         .vocab = head.out(),
                         .ld = op.dlogits_ld,
                         .targets = targets,
                         .losses = op.losses,
                         .gradient = true,
                         .scale = op.scale,
                         .x = rounded ? op.x : nullptr,
                         .head = rounded ? head.data() : nullptr,
                         .in = head.in(),
                         .head_ld = head.ld()},
                        op.rows);
  });
}

}  // namespace

void classifier_loss(TrainState& state, const ClassifierLoss& op) {
  const auto& head = static_cast<const GpuMatrix&>(*op.head);
  const int vocab = head.out(), ld = (vocab + 7) / 8 * 8;
  const size_t fitting = kLogitBytes / (static_cast<size_t>(ld) * sizeof(float));
  const int chunk = std::min(op.rows, static_cast<int>(std::max<size_t>(fitting / 128 * 128, 128)));
  const size_t rows = static_cast<size_t>(op.rows), floats = at(chunk, ld);
  // The room for logits is taken where a gradient is wanted, too, which needs none: the first
  // validation would make scratch memory larger, and what was captured in it be captured again.
  if (rows == 0 ||
      !state.workspace.begin(Workspace::room<float>(floats) + Workspace::room<int32_t>(rows)))
    return;
  float* const logits = state.workspace.take<float>(floats);
  const int32_t* const targets = state.workspace.upload(op.targets);
  if (op.dlogits) return loss_with_gradient(state, op, targets);
  for (int row = 0; row < op.rows; row += chunk) {
    const int count = std::min(chunk, op.rows - row);
    multiply_by_head(state, op, row, count, ProductEpilogue::kStoreFloat, logits, ld);
    start_classifier<float>(state.runtime,
                            {.logits = logits,
                             .vocab = vocab,
                             .ld = ld,
                             .targets = targets + row,
                             .losses = op.losses + row},
                            count);
  }
}

}  // namespace fastserve::gpu
