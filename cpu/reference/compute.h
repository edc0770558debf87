// Elements of the training precision, read and written as doubles.
#pragma once

#include <cstddef>
#include <vector>

#include "base/half.h"
#include "model/train_ops.h"

namespace fastserve::reference {

/// Reads and writes arrays of float, bfloat16 or half through an untyped pointer.
class Compute {
 public:
  explicit Compute(Precision precision) : precision_(precision) {}

  Precision precision() const { return precision_; }
  double load(const void* array, size_t i) const;
  void store(void* array, size_t i, double value) const;
  /// `value` as it reads back after a store.
  double rounded(double value) const;
  /// rows x cols elements of a matrix with leading dimension `ld`, contiguous.
  std::vector<double> matrix(const void* array, int rows, int cols, int ld) const;

 private:
  Precision precision_;
};

/// row * ld + col without overflow in int.
inline size_t at(int row, int ld, int col = 0) {
  return static_cast<size_t>(row) * static_cast<size_t>(ld) + static_cast<size_t>(col);
}

double gelu(double x);        ///< 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
double gelu_slope(double x);  ///< its derivative
double silu(double x);        ///< x sigmoid(x)
double silu_slope(double x);  ///< sigmoid(x) (1 + x (1 - sigmoid(x)))

}  // namespace fastserve::reference
