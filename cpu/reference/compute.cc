#include "cpu/reference/compute.h"

#include <cmath>
#include <numbers>

namespace fastserve::reference {

double Compute::load(const void* array, size_t i) const {
  switch (precision_) {
    case Precision::kBFloat16:
      return to_float(static_cast<const BFloat16*>(array)[i]);
    case Precision::kFloat16:
      return to_float(static_cast<const Float16*>(array)[i]);
    case Precision::kFloat32:
      break;
  }
  return static_cast<const float*>(array)[i];
}

void Compute::store(void* array, size_t i, double value) const {
  const float v = static_cast<float>(value);
  switch (precision_) {
    case Precision::kBFloat16:
      static_cast<BFloat16*>(array)[i] = to_bfloat16(v);
      return;
    case Precision::kFloat16:
      static_cast<Float16*>(array)[i] = to_float16(v);
      return;
    case Precision::kFloat32:
      break;
  }
  static_cast<float*>(array)[i] = v;
}

double Compute::rounded(double value) const {
  float cell = 0;  // large enough for each of the three types
  store(&cell, 0, value);
  return load(&cell, 0);
}

std::vector<double> Compute::matrix(const void* array, int rows, int cols, int ld) const {
  std::vector<double> out(at(rows, cols));
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < cols; ++c) out[at(r, cols, c)] = load(array, at(r, ld, c));
  return out;
}

namespace {

const double kGeluRate = std::sqrt(2.0 / std::numbers::pi);
constexpr double kGeluCubic = 0.044715;

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

}  // namespace

double gelu(double x) {
  return 0.5 * x * (1.0 + std::tanh(kGeluRate * (x + kGeluCubic * x * x * x)));
}

double gelu_slope(double x) {
  const double t = std::tanh(kGeluRate * (x + kGeluCubic * x * x * x));
  const double inner = kGeluRate * (1.0 + 3.0 * kGeluCubic * x * x);
  return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner;
}

double silu(double x) { return x * sigmoid(x); }

double silu_slope(double x) {
  const double s = sigmoid(x);
  return s * (1.0 + x * (1.0 - s));
}

}  // namespace fastserve::reference
