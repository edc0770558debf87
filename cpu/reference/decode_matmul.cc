// The inference product: norm, quantised activations, epilogue.
#include <algorithm>
#include <cmath>

#include "cpu/reference/compute.h"
#include "cpu/reference/decode_functions.h"

namespace fastserve::reference {
namespace {

float stored(float value, WeightFormat format) {
  if (format == WeightFormat::kBFloat16) return to_float(to_bfloat16(value));
  if (format == WeightFormat::kFloat16) return to_float(to_float16(value));
  return value;
}

/// The formulas of norms.cc on one row.
void normalise(std::vector<double>& x, const DecodeNorm& norm) {
  const double n = static_cast<double>(x.size());
  double mean = 0, square = 0;
  if (norm.kind == NormKind::kLayerNorm) {
    for (double v : x) mean += v;
    mean /= n;
  }
  for (double v : x) square += (v - mean) * (v - mean);
  const double inverse = 1.0 / std::sqrt(square / n + static_cast<double>(norm.epsilon));
  for (size_t c = 0; c < x.size(); ++c)
    x[c] = (x[c] - mean) * inverse * norm.weight[c] + (norm.bias ? norm.bias[c] : 0.0f);
}

std::vector<double> input_row(const DecodeMatmul& op, int row) {
  const int from = op.gather.empty() ? row : op.gather[static_cast<size_t>(row)];
  const float* begin = op.x + at(from, op.x_ld);
  std::vector<double> x(begin, begin + op.weight->in());
  if (op.norm) normalise(x, *op.norm);
  if (is_quantised(op.weight->format())) quantise_activations(x, op.weight->format());
  return x;
}

}  // namespace

DequantisedMatrix::DequantisedMatrix(int out, int in, WeightFormat format)
    : DecodeMatrix(out, in, format), values(at(out, in)) {}

size_t DequantisedMatrix::bytes() const { return values.size() * sizeof(float); }

Result<std::unique_ptr<DecodeMatrix>> DequantisedMatrix::make(const DecodeMatrixSource& source) {
  int out = 0;
  for (const auto& part : source.parts) out += part.rows;
  auto matrix = std::make_unique<DequantisedMatrix>(out, source.in, source.format);
  float* to = matrix->values.data();
  for (const auto& part : source.parts)
    for (int r = 0; r < part.rows; ++r, to += source.in) {
      const std::span<float> row(to, static_cast<size_t>(source.in));
      if (part.quantised) {
        part.quantised->dequantise_row(r, row);
        continue;
      }
      for (size_t i = 0; i < row.size(); ++i)
        row[i] = stored(part.floats[at(r, source.in) + i], source.format);
    }
  return std::unique_ptr<DecodeMatrix>(std::move(matrix));
}

void quantise_activations(std::vector<double>& x, WeightFormat format) {
  const size_t run = format_group(format) == 32 ? 32 : 128;
  for (size_t from = 0; from < x.size(); from += run) {
    const size_t to = std::min(from + run, x.size());
    float peak = 0;
    for (size_t i = from; i < to; ++i) peak = std::max(peak, std::abs(static_cast<float>(x[i])));
    if (peak == 0) continue;
    const float inverse = 127.0f / peak, scale = peak / 127.0f;
    for (size_t i = from; i < to; ++i)
      x[i] = std::nearbyint(static_cast<float>(x[i]) * inverse) * static_cast<double>(scale);
  }
}

void decode_matmul(const DecodeMatmul& op) {
  const auto& w = static_cast<const DequantisedMatrix&>(*op.weight);
  const int out = w.out(), in = w.in();
  std::vector<double> y(static_cast<size_t>(out));
  for (int r = 0; r < op.rows; ++r) {
    const std::vector<double> x = input_row(op, r);
    for (int o = 0; o < out; ++o) {
      double sum = op.bias ? op.bias[o] : 0.0;
      for (int i = 0; i < in; ++i) sum += x[static_cast<size_t>(i)] * w.values[at(o, in, i)];
      y[static_cast<size_t>(o)] = sum;
    }
    float* to = op.out + at(r, op.out_ld);
    const size_t neurons = y.size() / 2;
    switch (op.epilogue) {
      case DecodeEpilogue::kStore:
        std::copy(y.begin(), y.end(), to);
        break;
      case DecodeEpilogue::kAdd:
        for (size_t o = 0; o < y.size(); ++o) to[o] = static_cast<float>(to[o] + y[o]);
        break;
      case DecodeEpilogue::kGelu:
        for (size_t o = 0; o < y.size(); ++o) to[o] = static_cast<float>(gelu(y[o]));
        break;
      case DecodeEpilogue::kSwiGlu:
        for (size_t f = 0; f < neurons; ++f)
          to[f] = static_cast<float>(silu(y[f]) * y[neurons + f]);
        break;
    }
  }
}

}  // namespace fastserve::reference
