// A made-up model whose gradients are cheap and depend on the tokens and on the weights.
#pragma once

#include <memory>
#include <vector>

#include "base/hash.h"
#include "base/rng.h"
#include "cpu/reference/reference_ops.h"
#include "train/backend.h"
#include "train/dataset.h"

namespace fastserve {

class FakeBackend;

/// Rows pull the weights towards values that depend on their tokens: losses fall, and every bit
/// depends on the order of the sums.
class FakeSource final : public GradientSource {
 public:
  explicit FakeSource(FakeBackend& backend) : backend_(backend) {}
  Result<double> run(const Microbatch& batch, float scale, float* grad) override;
  void add(float* into, const float* other) override;
  size_t bytes() const override { return 0; }

 private:
  FakeBackend& backend_;
};

class FakeBackend final : public TrainBackend {
 public:
  FakeBackend() : masters_(kElements), packed_(kElements) {
    ops_ = make_reference_train_ops(Precision::kFloat32);
    // Tiles of unlike sizes, with gaps between some.
    size_t at = 0;
    for (size_t i = 0; at + 61 < kElements; i++) {
      const size_t size = 7 + 13 * i % 41;
      tiles_.push_back({at, size, i % 3 != 0, -1, 0, 1});
      at += size + (i % 4 == 0 ? 5 : 0);
    }
  }

  std::span<float> masters() override { return masters_; }
  const std::vector<ParameterTile>& tiles() const override { return tiles_; }
  void refresh(const ParameterTile& tile) override {
    for (size_t i = tile.offset; i < tile.offset + tile.size; i++) packed_[i] = masters_[i];
  }
  const TrainOps& ops() const override { return *ops_; }
  Result<std::unique_ptr<GradientSource>> make_source(int, int) override {
    return std::unique_ptr<GradientSource>(std::make_unique<FakeSource>(*this));
  }
  Result<std::unique_ptr<DeviceBuffer>> allocate(size_t bytes) override {
    struct Memory final : DeviceBuffer {
      explicit Memory(size_t n) : floats(n / 4) {}
      void* data() override { return floats.data(); }
      size_t bytes() const override { return floats.size() * 4; }
      std::vector<float> floats;
    };
    return std::unique_ptr<DeviceBuffer>(std::make_unique<Memory>(bytes));
  }
  size_t bytes() const override { return 0; }
  std::string description() const override { return "made up"; }
  std::string numerics_id() const override { return "made up"; }

  const std::vector<float>& packed() const { return packed_; }
  uint64_t weights_hash() const { return hash64(std::as_bytes(std::span(masters_))); }

  static std::vector<float> initial_weights() {
    std::vector<float> weights(kElements);
    Rng rng(5);
    for (float& weight : weights) weight = static_cast<float>(rng.normal() * 0.1);
    return weights;
  }
  static constexpr size_t kElements = 1000;

 private:
  std::unique_ptr<TrainOps> ops_;
  std::vector<float> masters_, packed_;
  std::vector<ParameterTile> tiles_;
};

inline Result<double> FakeSource::run(const Microbatch& batch, float scale, float* grad) {
  const std::vector<float>& weights = backend_.packed();
  std::vector<float> sum(weights.size());
  double loss = 0;
  for (size_t row = 0; row < batch.tokens.size(); row++) {
    const uint64_t pair = mix64(uint64_t(batch.tokens[row]) << 32 | uint64_t(batch.targets[row]));
    for (size_t i = row % 3; i < weights.size(); i += 3) {
      const float wanted = static_cast<float>(int64_t(mix64(pair ^ i) % 2001) - 1000) * 1e-3f;
      const float off = weights[i] - wanted;
      loss += 0.5 * double(off) * off / 1000;
      sum[i] += off * scale / 1000;
    }
  }
  if (grad != nullptr)
    for (size_t i = 0; i < sum.size(); i++) grad[i] = sum[i];
  return loss;
}

inline void FakeSource::add(float* into, const float* other) {
  backend_.ops().add(into, other, into, FakeBackend::kElements);
}

inline std::shared_ptr<Dataset> made_up_dataset(size_t train = 5000, size_t validation = 300) {
  auto data = std::make_shared<Dataset>();
  Rng rng(11);
  const auto fill = [&](TokenArray& tokens, size_t n) {
    std::vector<int32_t> ids;
    for (size_t i = 0; i < n; i++) ids.push_back(static_cast<int32_t>(rng.below(50)));
    tokens.append(ids);
  };
  fill(data->train, train);
  fill(data->validation, validation);
  data->vocab_size = 50;
  data->fingerprint = 77;
  return data;
}

}  // namespace fastserve
