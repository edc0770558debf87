#include "model/transformer/activations.h"

#include <algorithm>

namespace fastserve {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kStagger = 192;

/// Hands out byte ranges one after another. No two begin at the same offset of a page: ops walk
/// several buffers in step, and addresses that agree in their low 12 bits stall each other.
class Carver {
 public:
  size_t take(size_t elements, size_t element_bytes) {
    const size_t begin = used_;
    used_ += (elements * element_bytes + kPage - 1) / kPage * kPage + kStagger;
    return begin;
  }
  size_t used() const { return used_; }
  void rewind(size_t to) { used_ = to; }

 private:
  size_t used_ = 0;
};

}  // namespace

size_t compute_bytes(Precision precision) { return precision == Precision::kFloat32 ? 4 : 2; }

ActivationPlan::ActivationPlan(const ModelConfig& config, Precision precision, int max_rows,
                               Recompute recompute) {
  Carver carver;
  const size_t rows = static_cast<size_t>(max_rows);
  const size_t narrow = compute_bytes(precision);
  const auto floats = [&](int columns) {
    return carver.take(rows * static_cast<size_t>(columns), sizeof(float));
  };
  const auto compute = [&](int columns) {
    return carver.take(rows * static_cast<size_t>(columns), narrow);
  };
  const int hidden = config.hidden_size, attention = config.heads * config.head_dim;
  const int slope_parts = config.mlp == MlpKind::kSwiGlu ? 2 : 1;
  int widest = 0;
  for (int l = 0; l < config.layers; ++l) widest = std::max(widest, config.mlp_width(l));
  const bool shared_layers = recompute == Recompute::kLayer;
  for (int l = 0; l < config.layers; ++l) {
    LayerActivations& a = layers.emplace_back();
    if (shared_layers && l > 0) {
      a = layers.front();
      a.input = floats(hidden);
      continue;
    }
    const int width = shared_layers ? widest : config.mlp_width(l);
    a.input = floats(hidden);
    a.stats1 = floats(2);
    a.normed1 = compute(hidden);
    a.qkv = compute(config.qkv_width());
    a.projected = config.qk_norm ? compute(config.qkv_width()) : a.qkv;
    a.head_stats = config.qk_norm ? floats(config.heads + config.kv_heads) : 0;
    a.softmax = floats(2 * config.heads);
    a.attended = compute(attention);
    a.middle = floats(hidden);
    a.stats2 = floats(2);
    a.normed2 = compute(hidden);
    a.slope = compute(slope_parts * width);
    a.gated = compute(width);
  }
  output = floats(hidden);
  output_stats = floats(2);
  normed = compute(hidden);
  losses = carver.take(rows, sizeof(double));
  dresidual = floats(hidden);
  dresidual_compute = compute(hidden);
  dnormed = floats(hidden);

  classifier_ld = (config.vocab_size + 63) / 64 * 64;
  const size_t shared = carver.used();
  dlogits = compute(classifier_ld);
  size_t end = carver.used();
  carver.rewind(shared);
  dhidden = compute(slope_parts * widest);
  end = std::max(end, carver.used());
  carver.rewind(shared);
  dqkv = compute(config.qkv_width());
  dattended = compute(attention);
  bytes = std::max(end, carver.used());
}

}  // namespace fastserve
