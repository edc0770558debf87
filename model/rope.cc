#include <cmath>
#include <numbers>

#include "base/check.h"
#include "model/config.h"

namespace fastserve {
namespace {

/// Llama 3's frequency scaling (transformers, modeling_rope_utils, "llama3"): wavelengths shorter
/// than the old context over high_freq_factor stay, those longer than it over low_freq_factor are
/// divided by `factor`, and those between are blended.
double llama3_frequency(const Rope& rope, double frequency) {
  const double old_context = rope.original_max_positions;
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  if (wavelength < old_context / rope.high_freq_factor) return frequency;
  if (wavelength > old_context / rope.low_freq_factor) return frequency / rope.factor;
  const double smooth = (old_context / wavelength - rope.low_freq_factor) /
                        (rope.high_freq_factor - rope.low_freq_factor);
  return (1.0 - smooth) * frequency / rope.factor + smooth * frequency;
}

}  // namespace

std::vector<double> Rope::inverse_frequencies(int head_dim) const {
  FS_CHECK(head_dim > 0 && head_dim % 2 == 0);
  std::vector<double> out(static_cast<size_t>(head_dim) / 2);
  for (size_t i = 0; i < out.size(); i++) {
    out[i] = std::pow(theta, -2.0 * static_cast<double>(i) / head_dim);
    if (scaling == RopeScaling::kLinear) out[i] /= factor;
    if (scaling == RopeScaling::kLlama3) out[i] = llama3_frequency(*this, out[i]);
  }
  return out;
}

}  // namespace fastserve
