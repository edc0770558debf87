#include "cpu/train/train_ops.h"

#include <algorithm>
#include <cmath>

#include "cpu/train/cpu_train_ops.h"

namespace fastserve {
namespace {

/// Rows whose gradients of shared weights are summed together, before the blocks are joined in
/// order: fixed, because it decides bits.
constexpr int kSumRows = 64;

size_t area(int rows, int columns) {
  return static_cast<size_t>(rows) * static_cast<size_t>(columns);
}

}  // namespace

void* Scratch::reserve(size_t bytes) {
  if (bytes > memory_.size()) {
    memory_ = HostMemory();
    auto memory = HostMemory::allocate(bytes, "scratch of the training kernels");
    FS_CHECK(memory.ok());
    memory_ = std::move(memory).value();
  }
  return memory_.data();
}

CpuTrainOps::CpuTrainOps(const TrainKernels& kernels, Precision precision, LanePool& lanes)
    : kernels_(kernels),
      precision_(precision),
      lanes_(lanes),
      lane_scratch_(static_cast<size_t>(lanes.lanes())) {}

std::unique_ptr<TrainOps> make_cpu_train_ops(Isa isa, Precision precision, LanePool& lanes) {
  return std::make_unique<CpuTrainOps>(train_kernels(isa, static_cast<int>(precision)), precision,
                                       lanes);
}

const void* CpuTrainOps::at(const void* rows, size_t element) const {
  const size_t bytes = precision_ == Precision::kFloat32 ? 4 : 2;
  return static_cast<const char*>(rows) + element * bytes;
}
void* CpuTrainOps::at(void* rows, size_t element) const {
  return const_cast<void*>(at(static_cast<const void*>(rows), element));
}

void CpuTrainOps::embed_forward(const EmbedForward& op) {
  const EmbedTask task{.tokens = op.tokens.data(),
                       .positions = op.positions.data(),
                       .token_table = op.token_table,
                       .position_table = op.position_table,
                       .out = op.out,
                       .channels = op.channels};
  split(static_cast<int>(op.tokens.size()), 1,
        [&](int row, int rows, int) { kernels_.embed_forward(task, row, rows); });
}

void CpuTrainOps::embed_backward(const EmbedBackward& op) {
  const EmbedBackwardTask task{.tokens = op.tokens.data(),
                               .positions = op.positions.data(),
                               .dx = op.dx,
                               .dtoken_table = op.dtoken_table,
                               .dposition_table = op.dposition_table,
                               .rows = static_cast<int>(op.tokens.size()),
                               .channels = op.channels};
  // By columns: rows may meet in one row of a table.
  split(op.channels, 64,
        [&](int column, int columns, int) { kernels_.embed_backward(task, column, columns); });
}

void CpuTrainOps::norm_forward(const NormForward& op) {
  const NormTask task{.subtract_mean = op.kind == NormKind::kLayerNorm,
                      .x = op.x,
                      .weight = op.weight,
                      .bias = op.bias,
                      .epsilon = op.epsilon,
                      .channels = op.channels,
                      .out = op.out,
                      .stats = op.stats};
  split(op.rows, 1, [&](int row, int rows, int) { kernels_.norm_forward(task, row, rows); });
}

void CpuTrainOps::norm_backward(const NormBackward& op) {
  const int blocks = (op.rows + kSumRows - 1) / kSumRows;
  const size_t n = static_cast<size_t>(op.channels);
  float* sums = sums_.floats(2 * n * static_cast<size_t>(blocks));
  lanes_.run(blocks, [&](int64_t block, int) {
    float* dweight = sums + 2 * n * static_cast<size_t>(block);
    const NormBackwardTask task{.subtract_mean = op.kind == NormKind::kLayerNorm,
                                .dy = static_cast<const float*>(op.dy),
                                .x = op.x,
                                .weight = op.weight,
                                .stats = op.stats,
                                .channels = op.channels,
                                .dx = op.dx,
                                .accumulate = op.accumulate,
                                .dx_compute = op.dx_compute,
                                .dweight = dweight,
                                .dbias = op.dbias ? dweight + n : nullptr};
    const int row = static_cast<int>(block) * kSumRows;
    kernels_.norm_backward(task, row, std::min(kSumRows, op.rows - row));
  });
  for (int block = 0; block < blocks; block++, sums += 2 * n) {
    kernels_.add(op.dweight, sums, op.dweight, n);
    if (op.dbias) kernels_.add(op.dbias, sums + n, op.dbias, n);
  }
}

namespace {

RotaryTask rotary_task(const RotaryForward& op) {
  FS_CHECK(op.table == nullptr || op.shape.head_dim % 2 == 0);
  FS_CHECK(op.positions.size() >= static_cast<size_t>(op.rows) || op.table == nullptr);
  return {.in = op.in,
          .out = op.out,
          .ld = static_cast<size_t>(op.shape.width()),
          .heads = op.shape.heads,
          .kv_heads = op.shape.kv_heads,
          .head_dim = op.shape.head_dim,
          .positions = op.positions.data(),
          .table = op.table,
          .q_norm = op.q_norm,
          .k_norm = op.k_norm,
          .epsilon = op.epsilon,
          .stats = op.q_norm || op.k_norm ? op.stats : nullptr,
          .dq_norm = nullptr,
          .dk_norm = nullptr};
}

}  // namespace

void CpuTrainOps::rotary_forward(const RotaryForward& op) {
  const RotaryTask task = rotary_task(op);
  split(op.rows, 1, [&](int row, int rows, int) { kernels_.rotary_forward(task, row, rows); });
}

void CpuTrainOps::rotary_backward(const RotaryBackward& op) {
  const RotaryForward& f = op.forward;
  const int blocks = (f.rows + kSumRows - 1) / kSumRows;
  const size_t n = static_cast<size_t>(f.shape.head_dim);
  float* sums = sums_.floats(2 * n * static_cast<size_t>(blocks));
  lanes_.run(blocks, [&](int64_t block, int) {
    RotaryTask task = rotary_task(f);
    task.out = op.dqkv;
    task.dq_norm = op.dq_norm ? sums + 2 * n * static_cast<size_t>(block) : nullptr;
    task.dk_norm = op.dk_norm ? sums + 2 * n * static_cast<size_t>(block) + n : nullptr;
    const int row = static_cast<int>(block) * kSumRows;
    kernels_.rotary_backward(task, row, std::min(kSumRows, f.rows - row));
  });
  for (int block = 0; block < blocks; block++, sums += 2 * n) {
    if (op.dq_norm) kernels_.add(op.dq_norm, sums, op.dq_norm, n);
    if (op.dk_norm) kernels_.add(op.dk_norm, sums + n, op.dk_norm, n);
  }
}

namespace {

int longest(const AttentionForward& op) {
  FS_CHECK(op.shape.kv_heads > 0 && op.shape.heads % op.shape.kv_heads == 0);
  int longest = 0;
  for (size_t s = 0; s + 1 < op.starts.size(); s++)
    longest = std::max(longest, op.starts[s + 1] - op.starts[s]);
  return longest;
}

}  // namespace

void CpuTrainOps::attention_forward(const AttentionForward& op) {
  const size_t bytes = kernels_.attention_bytes(longest(op), op.shape.head_dim);
  for (Scratch& scratch : lane_scratch_) scratch.reserve(bytes);
  const int heads = op.shape.heads, kv_heads = op.shape.kv_heads, dim = op.shape.head_dim;
  const int sequences = static_cast<int>(op.starts.size()) - 1;
  lanes_.run(int64_t{sequences} * heads, [&](int64_t item, int lane) {
    const size_t s = static_cast<size_t>(item / heads);
    const int h = static_cast<int>(item % heads), kv = h / (heads / kv_heads), row = op.starts[s];
    const size_t base = area(row, op.shape.width());
    AttentionTask task{};
    task.q = at(op.qkv, base + area(h, dim));
    task.k = at(op.qkv, base + area(heads + kv, dim));
    task.v = at(op.qkv, base + area(heads + kv_heads + kv, dim));
    task.ld = static_cast<size_t>(op.shape.width());
    task.out = at(op.out, area(row, heads * dim) + area(h, dim));
    task.out_ld = area(heads, dim);
    task.stats =
        op.stats ? op.stats + 2 * (area(h, op.starts.back()) + static_cast<size_t>(row)) : nullptr;
    task.length = op.starts[s + 1] - row;
    task.head_dim = dim;
    task.window = op.window;
    task.heads = 1;
    task.scale = op.scale;
    task.scratch = lane_scratch_[static_cast<size_t>(lane)].reserve(0);
    kernels_.attention_forward(task);
  });
}

void CpuTrainOps::attention_backward(const AttentionBackward& op) {
  const AttentionForward& f = op.forward;
  const size_t bytes = kernels_.attention_bytes(longest(f), f.shape.head_dim);
  for (Scratch& scratch : lane_scratch_) scratch.reserve(bytes);
  const int heads = f.shape.heads, kv_heads = f.shape.kv_heads, dim = f.shape.head_dim;
  const int group = heads / kv_heads, sequences = static_cast<int>(f.starts.size()) - 1;
  lanes_.run(int64_t{sequences} * kv_heads, [&](int64_t item, int lane) {
    const size_t s = static_cast<size_t>(item / kv_heads);
    const int kv = static_cast<int>(item % kv_heads), h = kv * group, row = f.starts[s];
    const size_t base = area(row, f.shape.width());
    const size_t q = base + area(h, dim), k = base + area(heads + kv, dim);
    const size_t v = base + area(heads + kv_heads + kv, dim);
    const size_t out = area(row, heads * dim) + area(h, dim);
    AttentionTask task{};
    task.q = at(f.qkv, q);
    task.k = at(f.qkv, k);
    task.v = at(f.qkv, v);
    task.ld = static_cast<size_t>(f.shape.width());
    task.out = at(f.out, out);
    task.out_ld = area(heads, dim);
    task.stats = f.stats + 2 * (area(h, f.starts.back()) + static_cast<size_t>(row));
    task.head_stats = 2 * static_cast<size_t>(f.starts.back());
    task.length = f.starts[s + 1] - row;
    task.head_dim = dim;
    task.window = f.window;
    task.heads = group;
    task.scale = f.scale;
    task.dout = at(op.dout, out);
    task.dq = at(op.dqkv, q);
    task.dk = at(op.dqkv, k);
    task.dv = at(op.dqkv, v);
    task.scratch = lane_scratch_[static_cast<size_t>(lane)].reserve(0);
    kernels_.attention_backward(task);
  });
}

void CpuTrainOps::adamw(const AdamW& op) const {
  const double step = static_cast<double>(op.step);
  const double beta1 = static_cast<double>(op.beta1), beta2 = static_cast<double>(op.beta2);
  const double rate = static_cast<double>(op.learning_rate);
  kernels_.adamw({.param = op.param,
                  .m = op.m,
                  .v = op.v,
                  .grad = op.grad,
                  .n = op.n,
                  .keep = static_cast<float>(1 - rate * static_cast<double>(op.weight_decay)),
                  .beta1 = op.beta1,
                  .beta2 = op.beta2,
                  .rest1 = static_cast<float>(1 - beta1),
                  .rest2 = static_cast<float>(1 - beta2),
                  .step_size = static_cast<float>(rate / (1 - std::pow(beta1, step))),
                  .root_scale = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, step))),
                  .epsilon = op.epsilon,
                  .grad_scale = op.grad_scale});
}

void CpuTrainOps::add(const float* a, const float* b, float* out, size_t n) const {
  kernels_.add(a, b, out, n);
}

double CpuTrainOps::sum_squares(const float* x, size_t n) const {
  return kernels_.sum_squares(x, n);
}

}  // namespace fastserve
