// The classifier's loss, and the optimiser.
#include <algorithm>
#include <cmath>

#include "cpu/reference/train_functions.h"

namespace fastserve::reference {

/// loss = log(sum exp(logits)) - logits[target]; dlogits = (softmax(logits) - onehot(target)) *
/// scale
void classifier_loss(const Compute& compute, const ClassifierLoss& op) {
  const auto& head = static_cast<const Matrix&>(*op.head);
  const int vocab = head.out(), in = head.in();
  const std::vector<double> x = compute.matrix(op.x, op.rows, in, in);
  std::vector<double> logits(static_cast<size_t>(vocab));
  for (int r = 0; r < op.rows; ++r) {
    const int target = op.targets[static_cast<size_t>(r)];
    op.losses[r] = 0;
    if (op.dlogits)
      for (int c = 0; c < op.dlogits_ld; ++c) compute.store(op.dlogits, at(r, op.dlogits_ld, c), 0);
    if (target < 0) continue;
    for (int o = 0; o < vocab; ++o) {
      double sum = 0;
      for (int i = 0; i < in; ++i) sum += x[at(r, in, i)] * head.values[at(o, in, i)];
      logits[static_cast<size_t>(o)] = sum;
    }
    const double peak = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (double v : logits) sum += std::exp(v - peak);
    op.losses[r] = peak + std::log(sum) - logits[static_cast<size_t>(target)];
    if (!op.dlogits) continue;
    for (int o = 0; o < vocab; ++o) {
      const double p = std::exp(logits[static_cast<size_t>(o)] - peak) / sum;
      compute.store(op.dlogits, at(r, op.dlogits_ld, o),
                    (p - (o == target ? 1.0 : 0.0)) * static_cast<double>(op.scale));
    }
  }
}

void adamw(const AdamW& op) {
  const double beta1 = op.beta1, beta2 = op.beta2;
  const double correct1 = 1.0 - std::pow(beta1, static_cast<double>(op.step));
  const double correct2 = 1.0 - std::pow(beta2, static_cast<double>(op.step));
  const double rate = op.learning_rate, decay = 1.0 - rate * static_cast<double>(op.weight_decay);
  for (size_t i = 0; i < op.n; ++i) {
    const double g = static_cast<double>(op.grad[i]) * static_cast<double>(op.grad_scale);
    const double m = beta1 * op.m[i] + (1.0 - beta1) * g;
    const double v = beta2 * op.v[i] + (1.0 - beta2) * g * g;
    const double step =
        (m / correct1) / (std::sqrt(v) / std::sqrt(correct2) + static_cast<double>(op.epsilon));
    op.m[i] = static_cast<float>(m);
    op.v[i] = static_cast<float>(v);
    op.param[i] = static_cast<float>(op.param[i] * decay - rate * step);
  }
}

}  // namespace fastserve::reference
