// The three products of a linear layer, and the classifier's loss on top of one.
#include <algorithm>

#include "gpu/kernels/classifier.cuh"
#include "gpu/kernels/columns.cuh"
#include "gpu/train_state.h"

namespace fastserve::gpu {

size_t column_sum_scratch(int rows, int cols) {
  const unsigned parts = blocks_for(static_cast<size_t>(rows), kSumRows);
  if (parts <= 1) return 0;
  return at(static_cast<int>(parts), cols) + column_sum_scratch(static_cast<int>(parts), cols);
}

void sum_columns_into(Runtime& runtime, Precision precision, const void* in, int rows, int cols,
                      int ld, float* out, bool accumulate, float* scratch) {
  const unsigned parts = blocks_for(static_cast<size_t>(rows), kSumRows);
  with_type(precision, [&]<class T>() {
    const auto start = [&]<int kWide>() {
      const unsigned across = blocks_for(static_cast<size_t>(cols), size_t{32} * kWide);
      const bool once = parts == 1;
      launch(runtime, {"sum_columns", {across, parts}, {32, 8}, kSumShared<kWide>},
             sum_columns<T, kWide>, static_cast<const T*>(in), rows, cols, ld, once ? out : scratch,
             cols, once && accumulate);
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
  state.multiply({.kind = ProductKind::kInputGrad,
                  .epilogue = kEpilogues[static_cast<size_t>(op.epilogue)],
                  .precision = state.precision,
                  .m = op.rows,
                  .n = w.in(),
                  .k = w.out(),
                  .a = op.dy,
                  .b = w.data(),
                  .lda = op.dy_ld,
                  .ldb = w.ld(),
                  .out = op.dx,
                  .out_ld = op.dx_ld,
                  .slope = const_cast<void*>(op.slope),
                  .slope_ld = op.dx_ld,
                  .slope_parts = op.slope_parts});
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

/// Of the rows of logits that are there at a time: enough for long products.
constexpr size_t kLogitBytes = 256 << 20;

template <class T>
void start_classifier(Runtime& runtime, const ClassifierArguments& arguments, int rows) {
  const bool fours =
      arguments.dlogits_ld % 4 == 0 && reinterpret_cast<uintptr_t>(arguments.dlogits) % 16 == 0;
  const size_t held = kClassifierShared + held_logits(arguments.ld);
  // Short rows leave most of so many threads without work; the longest fit in no shared memory.
  if (fours && arguments.vocab >= 8 * kHeldThreads && held <= runtime.properties().shared_memory)
    return launch(runtime, {"classifier_loss", {static_cast<unsigned>(rows)}, {kHeldThreads}, held},
                  classifier_loss_held<T>, arguments);
  launch(
      runtime,
      {"classifier_loss", {static_cast<unsigned>(rows)}, {kClassifierThreads}, kClassifierShared},
      fours ? gpu::classifier_loss<T, 4> : gpu::classifier_loss<T, 1>, arguments);
}

}  // namespace

void classifier_loss(TrainState& state, const ClassifierLoss& op) {
  const auto& head = static_cast<const GpuMatrix&>(*op.head);
  const int vocab = head.out(), ld = (vocab + 7) / 8 * 8;
  const size_t fitting = kLogitBytes / (static_cast<size_t>(ld) * sizeof(float));
  const int chunk = std::min(op.rows, static_cast<int>(std::max<size_t>(fitting / 128 * 128, 128)));
  const size_t rows = static_cast<size_t>(op.rows);
  if (rows == 0 || !state.workspace.begin(Workspace::room<float>(at(chunk, ld)) +
                                          Workspace::room<int32_t>(rows)))
    return;
  float* const logits = state.workspace.take<float>(at(chunk, ld));
  const int32_t* const targets = state.workspace.upload(op.targets);
  for (int row = 0; row < op.rows; row += chunk) {
    const int count = std::min(chunk, op.rows - row);
    const size_t bytes = state.element_bytes();
    state.multiply({.kind = ProductKind::kForward,
                    .epilogue = ProductEpilogue::kStoreFloat,
                    .precision = state.precision,
                    .m = count,
                    .n = vocab,
                    .k = head.in(),
                    .a = static_cast<const std::byte*>(op.x) + at(row, head.in()) * bytes,
                    .b = head.data(),
                    .lda = head.in(),
                    .ldb = head.ld(),
                    .out = logits,
                    .out_ld = ld});
    with_type(state.precision, [&]<class T>() {
      T* const dlogits =
          op.dlogits ? static_cast<T*>(op.dlogits) + at(row, op.dlogits_ld) : nullptr;
      start_classifier<T>(
          state.runtime,
          {logits, vocab, ld, targets + row, op.losses + row, dlogits, op.dlogits_ld, op.scale},
          count);
    });
  }
}

}  // namespace fastserve::gpu
