// The training ops as plain functions, by family; train_ops.cc makes them a TrainOps.
#pragma once

#include <vector>

#include "cpu/reference/compute.h"
#include "model/train_ops.h"

namespace fastserve::reference {

/// Weights rounded to the training precision, [out, in] row-major.
class Matrix final : public TrainMatrix {
 public:
  Matrix(int out, int in) : TrainMatrix(out, in), values(at(out, in)) {}
  std::vector<float> values;
};

void embed_forward(const EmbedForward& op);
void embed_backward(const EmbedBackward& op);
void norm_forward(const Compute& compute, const NormForward& op);
void norm_backward(const Compute& compute, const NormBackward& op);

void matmul_forward(const Compute& compute, const MatmulForward& op);
void matmul_backward_input(const Compute& compute, const MatmulBackwardInput& op);
void matmul_backward_weight(const Compute& compute, const MatmulBackwardWeight& op);

void rotary_forward(const Compute& compute, const RotaryForward& op);
void rotary_backward(const Compute& compute, const RotaryBackward& op);
void attention_forward(const Compute& compute, const AttentionForward& op);
void attention_backward(const Compute& compute, const AttentionBackward& op);

void classifier_loss(const Compute& compute, const ClassifierLoss& op);
void adamw(const AdamW& op);

}  // namespace fastserve::reference
