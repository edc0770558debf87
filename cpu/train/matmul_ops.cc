// The three products of a linear layer, and the classifier.
#include <algorithm>

#include "cpu/train/cpu_train_ops.h"

namespace fastserve {
namespace {

constexpr size_t kRowBlockBytes = size_t{4} << 20;  // of A: what stays in a shared cache
constexpr int kLeastRows = 48;                      // of an item, when rows are split at all
constexpr int kStripRows = 64;
constexpr size_t kStripFloats = size_t{1}
                                << 18;  // a strip of logits may be taller while this small
/// A matrix from here on belongs to a model whose gradients no cache holds: write past it.
constexpr size_t kStreamedElements = size_t{1} << 17;

size_t area(int rows, int columns) {
  return static_cast<size_t>(rows) * static_cast<size_t>(columns);
}

const TrainPanels& packed(const TrainMatrix* matrix) {
  return static_cast<const TrainPanels&>(*matrix);
}

int panels_of(int columns) { return (columns + kPanelColumns - 1) / kPanelColumns; }

bool streams(const MatmulBackwardWeight& op) {
  return !op.accumulate && area(op.out, op.in) >= kStreamedElements && op.in % 16 == 0 &&
         reinterpret_cast<uintptr_t>(op.dweight) % 64 == 0;
}

ProductEnd product_end(MatmulEpilogue epilogue) {
  switch (epilogue) {
    case MatmulEpilogue::kStore:
      return ProductEnd::kStore;
    case MatmulEpilogue::kStoreFloat:
      return ProductEnd::kStoreFloat;
    case MatmulEpilogue::kAddResidual:
      return ProductEnd::kAddResidual;
    case MatmulEpilogue::kGelu:
      return ProductEnd::kGelu;
    case MatmulEpilogue::kSwiGlu:
      return ProductEnd::kSwiGlu;
  }
  FS_CHECK(false);
}

}  // namespace

std::unique_ptr<TrainMatrix> CpuTrainOps::make_matrix(int out, int in) {
  FS_CHECK(out > 0 && in > 0);
  return std::make_unique<TrainPanels>(out, in, kernels_.per_word);
}

void CpuTrainOps::pack(TrainMatrix& matrix, int row, int rows, const float* masters) const {
  auto& to = static_cast<TrainPanels&>(matrix);
  FS_CHECK(row % kPanelColumns == 0 && row + rows <= to.out());
  FS_CHECK(rows % kPanelColumns == 0 || row + rows == to.out());
  kernels_.pack({.masters = masters,
                 .out = to.out(),
                 .in = to.in(),
                 .row = row,
                 .rows = rows,
                 .forward = to.forward(),
                 .backward = to.backward(),
                 .forward_panel = to.forward_panel,
                 .backward_panel = to.backward_panel,
                 .stream = area(to.out(), to.in()) >= kStreamedElements});
}

CpuTrainOps::Operand CpuTrainOps::operand(const void* rows, int ld, int count, int columns) {
  const int pw = kernels_.per_word;
  if (!kernels_.widen && columns % pw == 0 && ld % pw == 0)
    return {rows, static_cast<size_t>(ld / pw)};
  const size_t words = static_cast<size_t>((columns + pw - 1) / pw);
  uint32_t* to = words_.words(static_cast<size_t>(count) * words);
  split(count, 1, [&](int begin, int part, int) {
    const size_t row = static_cast<size_t>(begin);
    kernels_.words_of_rows(at(rows, row * static_cast<size_t>(ld)), static_cast<size_t>(ld), part,
                           columns, to + row * words, words);
  });
  return {to, words};
}

void CpuTrainOps::product(const ProductTask& task) {
  const int lanes = lanes_.lanes(), panels = panels_of(task.columns);
  const size_t row_bytes =
      static_cast<size_t>(std::min(task.words, kBlockWords)) * sizeof(uint32_t);
  const int most = std::max(2 * kLeastRows, static_cast<int>(kRowBlockBytes / row_bytes));
  int blocks = (task.rows + most - 1) / most;
  if (lanes > 1)
    while (blocks * panels < 3 * lanes && task.rows / (blocks + 1) >= kLeastRows) blocks++;
  const int rows = (task.rows + blocks - 1) / blocks;
  if (task.words > kBlockWords)
    for (Scratch& scratch : lane_scratch_) scratch.floats(area(rows, kPanelColumns));
  lanes_.run(int64_t{blocks} * panels, [&](int64_t item, int lane) {
    ProductTask part = task;
    part.row = static_cast<int>(item / panels) * rows;
    part.rows = std::min(rows, task.rows - part.row);
    if (part.rows <= 0) return;
    part.column = static_cast<int>(item % panels) * kPanelColumns;
    part.columns = std::min(kPanelColumns, task.columns - part.column);
    if (task.words > kBlockWords)
      part.partial = lane_scratch_[static_cast<size_t>(lane)].floats(area(rows, kPanelColumns));
    kernels_.multiply(part);
  });
}

void CpuTrainOps::matmul_forward(const MatmulForward& op) {
  const TrainPanels& w = packed(op.weight);
  if (op.rows <= 0) return;
  const bool swiglu = op.epilogue == MatmulEpilogue::kSwiGlu;
  FS_CHECK(!swiglu || w.out() % 2 == 0);
  const int columns = swiglu ? w.out() / 2 : w.out();
  const Operand a = operand(op.x, op.x_ld, op.rows, w.in());
  product({.a = a.words,
           .a_row = a.row,
           .a_step = 1,
           .b = w.forward(),
           .b_panel = w.forward_panel,
           .words = w.forward_words,
           .row = 0,
           .rows = op.rows,
           .column = 0,
           .columns = columns,
           .bias = op.bias,
           .end = product_end(op.epilogue),
           .out = op.out,
           .out_ld = static_cast<size_t>(op.out_ld),
           .residual = op.residual,
           .slope = op.slope,
           .slope_ld = static_cast<size_t>(w.out()),
           .width = columns,
           .partial = nullptr});
}

void CpuTrainOps::matmul_backward_input(const MatmulBackwardInput& op) {
  const TrainPanels& w = packed(op.weight);
  if (op.rows <= 0) return;
  FS_CHECK(op.slope_parts == 1 || op.slope_parts == 2);
  FS_CHECK(op.dbias == nullptr);
  const Operand a = operand(op.dy, op.dy_ld, op.rows, w.out());
  ProductEnd end = ProductEnd::kStore;
  if (op.epilogue == InputGradEpilogue::kStoreFloat) end = ProductEnd::kStoreFloat;
  if (op.epilogue == InputGradEpilogue::kTimesSlope)
    end = op.slope_parts == 1 ? ProductEnd::kTimesSlope : ProductEnd::kTimesSlopes;
  product({.a = a.words,
           .a_row = a.row,
           .a_step = 1,
           .b = w.backward(),
           .b_panel = w.backward_panel,
           .words = w.backward_words,
           .row = 0,
           .rows = op.rows,
           .column = 0,
           .columns = w.in(),
           .bias = nullptr,
           .end = end,
           .out = op.dx,
           .out_ld = static_cast<size_t>(op.dx_ld),
           .residual = nullptr,
           .slope = const_cast<void*>(op.slope),
           .slope_ld = static_cast<size_t>(op.dx_ld),
           .width = w.in(),
           .partial = nullptr});
}

void CpuTrainOps::pair(const void* rows, int ld, int count, int columns, uint32_t* panels,
                       size_t panel) {
  split(count, 32, [&](int begin, int part, int) {
    kernels_.pair_rows({.source = rows,
                        .ld = static_cast<size_t>(ld),
                        .row = begin,
                        .rows = part,
                        .total_rows = count,
                        .columns = columns,
                        .panels = panels,
                        .panel = panel});
  });
}

void CpuTrainOps::matmul_backward_weight(const MatmulBackwardWeight& op) {
  if (op.rows <= 0) return;
  const int words = (op.rows + kernels_.per_word - 1) / kernels_.per_word;
  const size_t panel = area(words, kPanelColumns);
  const int out_panels = panels_of(op.out), in_panels = panels_of(op.in);
  uint32_t* dy = pairs_.words(static_cast<size_t>(out_panels + in_panels) * panel);
  uint32_t* x = dy + static_cast<size_t>(out_panels) * panel;
  pair(op.dy, op.dy_ld, op.rows, op.out, dy, panel);
  pair(op.x, op.x_ld, op.rows, op.in, x, panel);

  const int lanes = lanes_.lanes();
  const int parts = lanes == 1 ? 1 : std::clamp(3 * lanes / out_panels, 1, in_panels);
  const int part_columns = (in_panels + parts - 1) / parts * kPanelColumns;
  if (words > kBlockWords)
    for (Scratch& scratch : lane_scratch_) scratch.floats(area(kPanelColumns, kPanelColumns));
  lanes_.run(int64_t{out_panels} * parts, [&](int64_t item, int lane) {
    const int p = static_cast<int>(item) / parts, row = p * kPanelColumns;
    const int column = static_cast<int>(item) % parts * part_columns;
    const int rows = std::min(kPanelColumns, op.out - row);
    const uint32_t* a = dy + static_cast<size_t>(p) * panel;
    if (op.dbias && column == 0) kernels_.column_sums(a, words, rows, op.dbias + row);
    if (column >= op.in) return;
    ProductTask task{};
    task.a = a;
    task.a_row = 1;
    task.a_step = kPanelColumns;
    task.b = x;
    task.b_panel = panel;
    task.words = words;
    task.rows = rows;
    task.column = column;
    task.columns = std::min(part_columns, op.in - column);
    task.end = op.accumulate ? ProductEnd::kAddFloat
               : streams(op) ? ProductEnd::kStreamFloat
                             : ProductEnd::kStoreFloat;
    task.out = op.dweight + area(row, op.in);
    task.out_ld = static_cast<size_t>(op.in);
    if (words > kBlockWords) task.partial = lane_scratch_[static_cast<size_t>(lane)].floats(0);
    kernels_.multiply(task);
  });
}

void CpuTrainOps::classifier_loss(const ClassifierLoss& op) {
  const TrainPanels& w = packed(op.head);
  const int vocab = w.out(), ld = (vocab + 15) / 16 * 16;
  FS_CHECK(op.dlogits == nullptr || op.dlogits_ld >= vocab);
  FS_CHECK(op.targets.size() >= static_cast<size_t>(op.rows));
  const int strip = std::max(kStripRows, static_cast<int>(kStripFloats / static_cast<size_t>(ld)));
  float* logits = logits_.floats(area(std::min(strip, op.rows), ld));
  for (int row = 0; row < op.rows; row += strip) {
    const int rows = std::min(strip, op.rows - row);
    matmul_forward({.weight = op.head,
                    .x = at(op.x, area(row, w.in())),
                    .rows = rows,
                    .x_ld = w.in(),
                    .bias = nullptr,
                    .epilogue = MatmulEpilogue::kStoreFloat,
                    .out = logits,
                    .out_ld = ld,
                    .residual = nullptr,
                    .slope = nullptr});
    split(rows, 1, [&](int begin, int count, int) {
      for (int r = begin; r < begin + count; r++)
        op.losses[row + r] = kernels_.loss(
            {.logits = logits + area(r, ld),
             .vocab = vocab,
             .target = op.targets[static_cast<size_t>(row + r)],
             .scale = op.scale,
             .dlogits = op.dlogits ? at(op.dlogits, area(row + r, op.dlogits_ld)) : nullptr,
             .dlogits_ld = op.dlogits_ld});
    });
  }
}

}  // namespace fastserve
