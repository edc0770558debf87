// TrainOps on the CPU's kernels: cuts each op into items for the lanes.
#pragma once

#include <vector>

#include "cpu/host_memory.h"
#include "cpu/train/packed_matrix.h"
#include "cpu/train/train_ops.h"

namespace fastserve {

/// Memory that grows to the largest request and stays. Contents do not survive growth.
class Scratch {
 public:
  void* reserve(size_t bytes);
  float* floats(size_t n) { return static_cast<float*>(reserve(n * sizeof(float))); }
  uint32_t* words(size_t n) { return static_cast<uint32_t*>(reserve(n * sizeof(uint32_t))); }

 private:
  HostMemory memory_;
};

/// Owns:     scratch per lane and per op, grown at most once per shape.
/// Promises: items split outputs, or rows in blocks of fixed size whose sums are joined in order:
///           bits do not depend on the lanes. pack, adamw, add and sum_squares use no lane and no
///           scratch, so threads may call them side by side.
class CpuTrainOps final : public TrainOps {
 public:
  CpuTrainOps(const TrainKernels& kernels, Precision precision, LanePool& lanes);

  Precision precision() const override { return precision_; }
  std::unique_ptr<TrainMatrix> make_matrix(int out, int in) override;
  void pack(TrainMatrix& matrix, int row, int rows, const float* masters) const override;

  void embed_forward(const EmbedForward& op) override;
  void embed_backward(const EmbedBackward& op) override;
  void norm_forward(const NormForward& op) override;
  void norm_backward(const NormBackward& op) override;
  void matmul_forward(const MatmulForward& op) override;
  void matmul_backward_input(const MatmulBackwardInput& op) override;
  void matmul_backward_weight(const MatmulBackwardWeight& op) override;
  void rotary_forward(const RotaryForward& op) override;
  void rotary_backward(const RotaryBackward& op) override;
  void attention_forward(const AttentionForward& op) override;
  void attention_backward(const AttentionBackward& op) override;
  void classifier_loss(const ClassifierLoss& op) override;

  void adamw(const AdamW& op) const override;
  void add(const float* a, const float* b, float* out, size_t n) const override;
  double sum_squares(const float* x, size_t n) const override;

 private:
  /// Rows as A of a product.
  struct Operand {
    const void* words;
    size_t row;  ///< words from row to row
  };
  /// Where the rows lie when they are whole words, else copied to scratch as words.
  Operand operand(const void* rows, int ld, int count, int columns);
  /// Runs the task's rows [0, rows) and columns [0, columns) on all lanes.
  void product(const ProductTask& task);
  void pair(const void* rows, int ld, int count, int columns, uint32_t* panels, size_t panel);

  /// Calls body(begin, count, lane) for parts of [0, total) whose borders are multiples of `step`.
  template <class Body>
  void split(int total, int step, const Body& body);

  const void* at(const void* rows, size_t element) const;
  void* at(void* rows, size_t element) const;

  const TrainKernels& kernels_;
  const Precision precision_;
  LanePool& lanes_;
  Scratch words_, pairs_, sums_, logits_;
  std::vector<Scratch> lane_scratch_;
};

template <class Body>
void CpuTrainOps::split(int total, int step, const Body& body) {
  const int lanes = lanes_.lanes();
  if (lanes == 1) {
    if (total > 0) body(0, total, 0);
    return;
  }
  const int part = ((total + 4 * lanes - 1) / (4 * lanes) + step - 1) / step * step;
  if (part == 0) return;
  lanes_.run((total + part - 1) / part, [&](int64_t item, int lane) {
    const int begin = static_cast<int>(item) * part;
    body(begin, total - begin < part ? total - begin : part, lane);
  });
}

}  // namespace fastserve
