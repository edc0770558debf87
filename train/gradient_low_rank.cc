#include "train/gradient_low_rank.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/half.h"
#include "base/rng.h"

namespace fastserve {
namespace {

constexpr size_t kLanes = 16;

/// In a fixed number of lanes, so that the bits do not depend on how it is compiled.
float dot(const float* a, const float* b, size_t n) {
  float lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t l = 0; l < kLanes; l++) lanes[l] += a[i + l] * b[i + l];
  for (size_t l = 0; i + l < n; l++) lanes[l] += a[i + l] * b[i + l];
  for (size_t half = kLanes / 2; half > 0; half /= 2)
    for (size_t l = 0; l < half; l++) lanes[l] += lanes[l + half];
  return lanes[0];
}

/// Values may be as large as 2^100: their squares need double.
double dot_wide(const float* a, const float* b, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

void scale(float* x, size_t n, double factor) {
  for (size_t i = 0; i < n; i++) x[i] = static_cast<float>(static_cast<double>(x[i]) * factor);
}

/// y += factor * x.
void add_scaled(float* y, const float* x, float factor, size_t n) {
  for (size_t i = 0; i < n; i++) y[i] += factor * x[i];
}

void write(const float* x, size_t n, std::byte* out) {
  for (size_t i = 0; i < n; i++) {
    const BFloat16 value = to_bfloat16(x[i]);
    std::memcpy(out + 2 * i, &value, 2);
  }
}

/// False when a magnitude is not below `limit`.
bool read(const std::byte* in, float* x, size_t n, float limit) {
  bool good = true;
  for (size_t i = 0; i < n; i++) {
    BFloat16 value;
    std::memcpy(&value, in + 2 * i, 2);
    x[i] = to_float(value);
    good &= std::abs(x[i]) < limit;
  }
  return good;
}

}  // namespace

bool LowRank::pays(int rows, int cols, int rank) {
  return 2 * (int64_t{rows} + cols) * rank <= int64_t{rows} * cols;
}

LowRank::LowRank(int rows, int cols, int rank)
    : rows_(static_cast<size_t>(rows)),
      cols_(static_cast<size_t>(cols)),
      rank_(static_cast<size_t>(rank)) {
  FS_CHECK(rank >= 1 && pays(rows, cols, rank));
}

/// Rows of norm 1: what the last step left, or numbers of no meaning where it left nothing.
void LowRank::prepare_basis(float* basis) const {
  for (size_t k = 0; k < rank_; k++) {
    float* row = basis + k * cols_;
    double norm = std::sqrt(dot_wide(row, row, cols_));
    if (!(norm > 1e-30)) {
      for (size_t j = 0; j < cols_; j++)
        row[j] = static_cast<float>(static_cast<int64_t>(mix64(k << 32 | j) >> 40) - (1 << 23));
      norm = std::sqrt(dot_wide(row, row, cols_));
    }
    scale(row, cols_, 1 / norm);
  }
}

/// Gram-Schmidt, each direction freed of the ones before it. One in which next to nothing is left
/// is zero: its basis begins anew.
void LowRank::orthonormalise(float* left) const {
  for (size_t k = 0; k < rank_; k++) {
    float* column = left + k * rows_;
    const double before = std::sqrt(dot_wide(column, column, rows_));
    for (size_t other = 0; other < k && before > 0; other++) {
      const double shared = dot_wide(column, left + other * rows_, rows_);
      add_scaled(column, left + other * rows_, static_cast<float>(-shared), rows_);
    }
    const double norm = std::sqrt(dot_wide(column, column, rows_));
    scale(column, rows_, norm > 1e-5 * before && norm > 1e-30 ? 1 / norm : 0);
  }
}

void LowRank::encode(const float* x, float* basis, std::byte* out) const {
  prepare_basis(basis);
  std::vector<float> left(rank_ * rows_);  // [rank, rows]
  for (size_t i = 0; i < rows_; i++)
    for (size_t k = 0; k < rank_; k++)
      left[k * rows_ + i] = dot(x + i * cols_, basis + k * cols_, cols_);
  orthonormalise(left.data());
  for (float& value : left) value = to_float(to_bfloat16(value));  // as it will arrive
  std::memset(basis, 0, basis_elements() * sizeof(float));
  for (size_t i = 0; i < rows_; i++)
    for (size_t k = 0; k < rank_; k++)
      add_scaled(basis + k * cols_, x + i * cols_, left[k * rows_ + i], cols_);
  write(left.data(), left.size(), out);
  write(basis, basis_elements(), out + 2 * left.size());
}

bool LowRank::decode(const std::byte* in, float* x) const {
  std::vector<float> left(rank_ * rows_), right(basis_elements());
  if (!read(in, left.data(), left.size(), 2.0f)) return false;
  if (!read(in + 2 * left.size(), right.data(), right.size(), 0x1.0p116f)) return false;
  std::memset(x, 0, rows_ * cols_ * sizeof(float));
  for (size_t i = 0; i < rows_; i++)
    for (size_t k = 0; k < rank_; k++)
      add_scaled(x + i * cols_, right.data() + k * cols_, left[k * rows_ + i], cols_);
  return true;
}

}  // namespace fastserve
