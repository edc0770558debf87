#include "cpu/decode/cpu_decode_ops.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/half.h"
#include "cpu/decode/decode_ops.h"

namespace fastserve {
namespace {

constexpr int kRowBlock = 512;        // rows prepared at once: bounds scratch, keeps them in cache
constexpr int kPrivateValues = 4096;  // up to here each lane prepares all rows for itself
constexpr int kItemsPerLane = 16;     // when rows are many

PrepareRow::Norm norm_of(const DecodeNorm* norm) {
  if (norm == nullptr) return PrepareRow::Norm::kNone;
  return norm->kind == NormKind::kLayerNorm ? PrepareRow::Norm::kLayer : PrepareRow::Norm::kRms;
}

MultiplyTask::Epilogue epilogue_of(DecodeEpilogue epilogue) {
  switch (epilogue) {
    case DecodeEpilogue::kStore:
      return MultiplyTask::Epilogue::kStore;
    case DecodeEpilogue::kAdd:
      return MultiplyTask::Epilogue::kAdd;
    case DecodeEpilogue::kGelu:
      return MultiplyTask::Epilogue::kGelu;
    case DecodeEpilogue::kSwiGlu:
      return MultiplyTask::Epilogue::kSwiGlu;
  }
  return MultiplyTask::Epilogue::kStore;
}

/// Cuts a product into items. Few rows: each lane's first item is half its share of the columns,
/// its next a quarter, and so on: long streams of memory, and little to wait for at the end. Many
/// rows: equal items, cut by rows as well when there are too few columns.
class Shares {
 public:
  Shares(int quads, int rows, int lanes) : quads_(quads), rows_(rows), lanes_(lanes) {
    streams_ = rows <= 64;
    if (streams_) {
      items_ = 0;
      for (int left = quads; left > 0; left -= std::min(left, lanes * level_size(left)))
        items_ +=
            (std::min(left, lanes * level_size(left)) + level_size(left) - 1) / level_size(left);
      return;
    }
    const int wanted = lanes == 1 ? 1 : lanes * kItemsPerLane;
    size_ = std::max(1, quads / wanted);
    const int column_items = (quads + size_ - 1) / size_;
    row_items_ = std::clamp(wanted / column_items, 1, std::max(1, rows / 32));
    row_chunk_ = (rows + row_items_ - 1) / row_items_;
    items_ = int64_t{column_items} * row_items_;
  }
  int64_t items() const { return items_; }
  void assign(int64_t item, MultiplyTask& task) const {
    if (!streams_) {
      task.quad = static_cast<int>(item / row_items_) * size_;
      task.quads = std::min(size_, quads_ - task.quad);
      task.row = static_cast<int>(item % row_items_) * row_chunk_;
      task.rows = std::min(row_chunk_, rows_ - task.row);
      return;
    }
    int left = quads_;
    for (; item >= lanes_; item -= lanes_) left -= std::min(left, lanes_ * level_size(left));
    task.quad = quads_ - left + static_cast<int>(item) * level_size(left);
    task.quads = std::min(level_size(left), quads_ - task.quad);
    task.row = 0;
    task.rows = rows_;
  }

 private:
  /// Quads of one item while `left` are left.
  int level_size(int left) const {
    return lanes_ == 1 ? left : std::max(1, left * 3 / (4 * lanes_));
  }
  int quads_, rows_, lanes_;
  bool streams_;
  int size_ = 1, row_items_ = 1, row_chunk_ = 1;
  int64_t items_;
};

}  // namespace

void PreparedRows::reserve(size_t rows, size_t row_bytes, size_t groups) {
  stride = (row_bytes + 127) / 64 * 64;  // 64 more: rows a power of two apart share cache sets
  data.reserve(rows * stride);
  scale.reserve(rows * groups);
  start.reserve(rows * groups);
}

CpuDecodeOps::CpuDecodeOps(Isa isa, LanePool& lanes)
    : kernels_(decode_kernels(isa)), lanes_(lanes), lane_(static_cast<size_t>(lanes.lanes())) {}

Result<std::unique_ptr<DecodeMatrix>> CpuDecodeOps::make_matrix(const DecodeMatrixSource& source) {
  FS_ASSIGN(std::unique_ptr<DecodeMatrix> matrix,
            PackedMatrix::make(source, kernels_, lanes_, weights_));
  return matrix;
}

Result<std::unique_ptr<KvCache>> CpuDecodeOps::make_cache(const KvShape& shape) {
  FS_ASSIGN(std::unique_ptr<KvCache> cache, PagedCache::make(shape, lanes_));
  return cache;
}

void CpuDecodeOps::embed(const DecodeEmbed& op) {
  const auto width = static_cast<size_t>(op.channels);
  const auto row = [&](int64_t r, int) {
    const auto at = static_cast<size_t>(r);
    float* out = op.out + at * width;
    const size_t from = static_cast<size_t>(op.tokens[at]) * width;
    if (op.type == DType::kF16)
      kernels_.widen_half(static_cast<const uint16_t*>(op.token_table) + from, out, op.channels);
    else if (op.type == DType::kBF16)
      for (size_t i = 0; i < width; i++)
        out[i] = to_float(static_cast<const BFloat16*>(op.token_table)[from + i]);
    else
      std::memcpy(out, static_cast<const float*>(op.token_table) + from, width * sizeof(float));
    if (op.position_table == nullptr) return;
    const float* position = op.position_table + static_cast<size_t>(op.positions[at]) * width;
    for (size_t i = 0; i < width; i++) out[i] += position[i];
  };
  const auto rows = static_cast<int64_t>(op.tokens.size());
  if (rows * op.channels <= 4 * kPrivateValues)
    for (int64_t r = 0; r < rows; r++) row(r, 0);
  else
    lanes_.run(rows, row);
}

ActivationKind CpuDecodeOps::activation_kind(const PackedMatrix& matrix) const {
  if (matrix.quantised()) return ActivationKind::kInt8;
  return matrix.kind() == PanelKind::kBFloat16 ? kernels_.bfloat16_activations
                                               : ActivationKind::kFloat;
}

size_t CpuDecodeOps::row_bytes(const PackedMatrix& matrix) const {
  size_t element = sizeof(float);
  if (activation_kind(matrix) == ActivationKind::kBFloat16) element = sizeof(uint16_t);
  if (activation_kind(matrix) == ActivationKind::kInt8)
    element = static_cast<size_t>(kernels_.int8_bytes);
  return static_cast<size_t>(matrix.depth()) * element;
}

/// Rows [from, to) of the block that begins at op row `first`.
void CpuDecodeOps::prepare_rows(const DecodeMatmul& op, int first, int from, int to,
                                PreparedRows& rows, Lane& lane) const {
  const auto& w = static_cast<const PackedMatrix&>(*op.weight);
  lane.scratch.reserve(static_cast<size_t>(w.depth()));
  PrepareRow task{};
  task.in = w.in();
  task.depth = w.depth();
  task.norm = norm_of(op.norm);
  if (op.norm != nullptr) {
    task.norm_weight = op.norm->weight;
    task.norm_bias = op.norm->bias;
    task.epsilon = op.norm->epsilon;
  }
  task.scratch = lane.scratch.data();
  task.group = w.group();
  task.zero = w.zero();
  const auto prepare = kernels_.prepare[static_cast<size_t>(activation_kind(w))];
  const auto groups = static_cast<size_t>(w.groups());
  for (int r = from; r < to; r++) {
    const int at = op.gather.empty() ? first + r : op.gather[static_cast<size_t>(first + r)];
    task.x = op.x + static_cast<size_t>(at) * static_cast<size_t>(op.x_ld);
    task.data = rows.data.data() + static_cast<size_t>(r) * rows.stride;
    task.scale = rows.scale.data() + static_cast<size_t>(r) * groups;
    task.start = rows.start.data() + static_cast<size_t>(r) * groups;
    prepare(task);
  }
}

MultiplyTask CpuDecodeOps::multiply_task(const DecodeMatmul& op, int first,
                                         const PreparedRows& rows) const {
  const auto& w = static_cast<const PackedMatrix&>(*op.weight);
  MultiplyTask task{};
  task.data = rows.data.data();
  task.data_stride = rows.stride;
  task.scale = rows.scale.data();
  task.start = rows.start.data();
  task.groups = w.groups();
  task.group = w.group();
  task.depth = w.depth();
  task.weights = w.weights();
  task.header = w.header_bytes();
  task.panel = w.panel_bytes();
  task.epilogue = epilogue_of(op.epilogue);
  task.bias = op.bias;
  task.bias_up = op.bias != nullptr && w.swiglu() ? op.bias + w.columns() : nullptr;
  task.out = op.out + static_cast<size_t>(first) * static_cast<size_t>(op.out_ld);
  task.out_ld = static_cast<size_t>(op.out_ld);
  task.columns = w.columns();
  return task;
}

void CpuDecodeOps::matmul(const DecodeMatmul& op) {
  const auto& w = static_cast<const PackedMatrix&>(*op.weight);
  FS_CHECK((op.epilogue == DecodeEpilogue::kSwiGlu) == w.swiglu());
  FS_CHECK(op.rows >= 0 && op.out_ld >= w.columns() && op.x_ld >= w.in());
  FS_CHECK(op.gather.empty() || op.gather.size() >= static_cast<size_t>(op.rows));
  for (int first = 0; first < op.rows; first += kRowBlock)
    matmul_block(op, first, std::min(kRowBlock, op.rows - first));
}

void CpuDecodeOps::matmul_block(const DecodeMatmul& op, int first, int rows) {
  const auto& w = static_cast<const PackedMatrix&>(*op.weight);
  const int lanes = lanes_.lanes();
  const auto multiply = kernels_.multiply[static_cast<size_t>(w.kind())];
  const auto n = static_cast<size_t>(rows), groups = static_cast<size_t>(w.groups());
  op_++;

  // One row, or a few short ones: it is cheaper for each lane to prepare them than to meet.
  const bool alone = rows == 1 || rows * w.depth() <= kPrivateValues;
  if (!alone) {
    shared_.reserve(n, row_bytes(w), groups);
    const int chunk = std::max(1, std::min(8, rows / (2 * lanes)));
    lanes_.run((rows + chunk - 1) / chunk, [&](int64_t item, int lane) {
      const int from = static_cast<int>(item) * chunk;
      prepare_rows(op, first, from, std::min(rows, from + chunk), shared_,
                   lane_[static_cast<size_t>(lane)]);
    });
  }

  const Shares shares(w.quads(), rows, lanes);
  const auto body = [&](int64_t item, int lane_index) {
    PreparedRows* prepared = &shared_;
    if (alone) {
      Lane& lane = lane_[static_cast<size_t>(lane_index)];
      prepared = &lane.rows;
      if (lane.prepared_op != op_) {
        prepared->reserve(n, row_bytes(w), groups);
        prepare_rows(op, first, 0, rows, *prepared, lane);
        lane.prepared_op = op_;
      }
    }
    MultiplyTask task = multiply_task(op, first, *prepared);
    shares.assign(item, task);
    if (task.rows > 0) multiply(task);
  };
  lanes_.run(shares.items(), body);
}

void CpuDecodeOps::cross_entropy(const float* logits, int rows, int vocab, int ld,
                                 std::span<const int32_t> targets, double* losses) {
  lanes_.run(rows, [&](int64_t r, int) {
    const float* row = logits + static_cast<size_t>(r) * static_cast<size_t>(ld);
    const int32_t target = targets[static_cast<size_t>(r)];
    losses[r] = target < 0 ? 0.0
                           : kernels_.log_sum_exp(row, vocab) -
                                 static_cast<double>(row[static_cast<size_t>(target)]);
  });
}

std::unique_ptr<DecodeOps> make_cpu_decode_ops(Isa isa, LanePool& lanes) {
  return std::make_unique<CpuDecodeOps>(isa, lanes);
}

}  // namespace fastserve
