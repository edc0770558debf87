#include "cpu/reference/reference_ops.h"
#include "cpu/reference/train_functions.h"

namespace fastserve {
namespace {

class ReferenceTrainOps final : public TrainOps {
 public:
  explicit ReferenceTrainOps(Precision precision) : compute_(precision) {}

  Precision precision() const override { return compute_.precision(); }

  std::unique_ptr<TrainMatrix> make_matrix(int out, int in) override {
    return std::make_unique<reference::Matrix>(out, in);
  }
  void pack(TrainMatrix& matrix, int row, int rows, const float* masters) const override {
    auto& plain = static_cast<reference::Matrix&>(matrix);
    const size_t from = reference::at(row, plain.in()), to = reference::at(row + rows, plain.in());
    for (size_t i = from; i < to; ++i)
      plain.values[i] = static_cast<float>(compute_.rounded(masters[i]));
  }

  void embed_forward(const EmbedForward& op) override { reference::embed_forward(op); }
  void embed_backward(const EmbedBackward& op) override { reference::embed_backward(op); }
  void norm_forward(const NormForward& op) override { reference::norm_forward(compute_, op); }
  void norm_backward(const NormBackward& op) override { reference::norm_backward(compute_, op); }
  void matmul_forward(const MatmulForward& op) override { reference::matmul_forward(compute_, op); }
  void matmul_backward_input(const MatmulBackwardInput& op) override {
    reference::matmul_backward_input(compute_, op);
  }
  bool sums_dx() const override { return true; }
  void matmul_backward_weight(const MatmulBackwardWeight& op) override {
    reference::matmul_backward_weight(compute_, op);
  }
  void rotary_forward(const RotaryForward& op) override { reference::rotary_forward(compute_, op); }
  void rotary_backward(const RotaryBackward& op) override {
    reference::rotary_backward(compute_, op);
  }
  void attention_forward(const AttentionForward& op) override {
    reference::attention_forward(compute_, op);
  }
  void attention_backward(const AttentionBackward& op) override {
    reference::attention_backward(compute_, op);
  }
  void classifier_loss(const ClassifierLoss& op) override {
    reference::classifier_loss(compute_, op);
  }

  void adamw(const AdamW& op) const override { reference::adamw(op); }
  void add(const float* a, const float* b, float* out, size_t n) const override {
    for (size_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
  }
  double sum_squares(const float* x, size_t n) const override {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
    return sum;
  }

 private:
  reference::Compute compute_;
};

}  // namespace

std::unique_ptr<TrainOps> make_reference_train_ops(Precision precision) {
  return std::make_unique<ReferenceTrainOps>(precision);
}

}  // namespace fastserve
