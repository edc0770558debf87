// A matrix as the product of two thin ones.
#pragma once

#include <cstddef>
#include <span>

namespace fastserve {

/// One step of power iteration on a matrix M [rows, cols] (PowerSGD, Vogels et al. 2019): P = M Q
/// with the last Q, made orthonormal; then Q = M^T P. Sent are P and Q as bf16; their product
/// stands for M.
///
/// The basis is that Q, [rank, cols]: where it has been it is a good place to start. The bits
/// depend on M and the basis alone.
class LowRank {
 public:
  /// Whether it is at most half as long as the matrix in bf16.
  static bool pays(int rows, int cols, int rank);

  /// Requires pays().
  LowRank(int rows, int cols, int rank);

  size_t bytes() const { return 2 * (rows_ + cols_) * rank_; }
  size_t basis_elements() const { return rank_ * cols_; }

  /// `x` [rows, cols] of values below 2^100, `basis` of basis_elements(), at first zero. Allocates
  /// rank * rows floats.
  void encode(const float* x, float* basis, std::byte* out) const;
  /// False when a value is not finite or so large that the product might not be. Allocates
  /// bytes() * 2.
  bool decode(const std::byte* in, float* x) const;

 private:
  void prepare_basis(float* basis) const;
  void orthonormalise(float* left) const;

  size_t rows_, cols_, rank_;
};

}  // namespace fastserve
