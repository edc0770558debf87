#include "train/resident_backend.h"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "train/device_memory.h"
#include "train/gradient_tree.h"

namespace fastserve {
namespace {

/// What computes gradients on the device: one pass at a time, so activations lie there once.
struct SharedPass {
  std::mutex mutex;
  std::unique_ptr<TrainOps> ops;
  std::unique_ptr<TrainPass> pass;
};

class ResidentSource final : public GradientSource {
 public:
  ResidentSource(Device& device, std::shared_ptr<SharedPass> shared, const TrainOps& flat,
                 const TrainWeights& weights, Recompute recompute)
      : device_(device),
        shared_(std::move(shared)),
        flat_(flat),
        weights_(weights),
        recompute_(recompute) {}

  // What is pushed on the way stays on the device and in its order: nobody need wait for it there.
  Result<double> run(const Microbatch& batch, float scale, float* grad) override {
    const std::lock_guard lock(shared_->mutex);
    const double loss = shared_->pass->run(weights_, batch, scale, grad);
    FS_TRY(device_.sync());
    return loss;
  }
  void add(float* into, const float* other) override {
    flat_.add(into, other, into, weights_.masters().size());
  }
  void add_part(float* into, const float* other, size_t begin, size_t end) override {
    flat_.add(into + begin, other + begin, into + begin, end - begin);
  }
  size_t bytes() const override { return shared_->pass->bytes(); }
  Recompute recompute() const override { return recompute_; }

 private:
  Device& device_;
  const std::shared_ptr<SharedPass> shared_;
  const TrainOps& flat_;
  const TrainWeights& weights_;
  const Recompute recompute_;
};

class ResidentBackend final : public TrainBackend {
 public:
  ResidentBackend(const ModelConfig& config, Precision precision, std::unique_ptr<Device> device)
      : config_(config), layout_(config), precision_(precision), device_(std::move(device)) {
    FS_CHECK(!device_->host_memory());
  }

  Status open(const TrainPlan& plan, std::optional<Recompute> recompute) {
    FS_ASSIGN(recompute_, choose_recompute(*device_, config_, layout_, precision_, plan.max_rows,
                                           resident_share(plan), recompute));
    ops_ = device_->make_train_ops(precision_);
    FS_ASSIGN(weights_, TrainWeights::create(*device_, *ops_, config_, layout_));
    max_rows_ = plan.max_rows;
    pass_ = std::make_shared<SharedPass>();
    pass_->ops = device_->make_train_ops(precision_);
    FS_ASSIGN(pass_->pass,
              TrainPass::create(*device_, *pass_->ops, config_, layout_, max_rows_, recompute_));
    for (auto& half : staging_) {
      FS_ASSIGN(half, device_->allocate_host(kStaging * sizeof(float)));
    }
    return {};
  }

  bool host_memory() const override { return false; }
  std::span<float> masters() override { return weights_->masters(); }
  const std::vector<ParameterTile>& tiles() const override { return weights_->tiles(); }
  void copy_in(float* to, std::span<const float> host) override {
    device_->copy_in(to, host.data(), host.size_bytes());
  }
  /// One half of the staging memory fills while the other is emptied.
  void copy_out(std::span<float> host, const float* from) const override {
    const std::lock_guard lock(staging_mutex_);
    struct Filled {
      Device::CopyMark mark;
      size_t at, n;
    };
    std::optional<Filled> before;
    const auto empty = [&](const Filled& filled, int half) {
      device_->wait_for(filled.mark);
      std::memcpy(host.data() + filled.at, staging_[half]->data(), filled.n * sizeof(float));
    };
    int half = 0;
    for (size_t at = 0; at < host.size(); at += kStaging, half = 1 - half) {
      const size_t n = std::min(kStaging, host.size() - at);
      const Filled filled{
          device_->copy_out_beside(staging_[half]->data(), from + at, n * sizeof(float)), at, n};
      if (before) empty(*before, 1 - half);
      before = filled;
    }
    if (before) empty(*before, 1 - half);
  }
  Status sync() override { return device_->sync(); }
  void refresh(const ParameterTile& tile) override { weights_->refresh(tile, *ops_); }
  void refresh_run(std::span<const ParameterTile> tiles) override {
    for (size_t i = 0; i < tiles.size();) {
      ParameterTile run = tiles[i];
      for (i++; i < tiles.size() && tiles[i].matrix == run.matrix; i++) run.rows += tiles[i].rows;
      weights_->refresh(run, *ops_);
    }
  }
  const TrainOps& ops() const override { return *ops_; }
  Result<std::unique_ptr<DeviceBuffer>> allocate(size_t bytes) override {
    return device_->allocate(bytes);
  }
  size_t bytes() const override { return 0; }  // of the host's
  std::string description() const override { return device_->description(); }
  std::string numerics_id() const override { return resident_numerics(*device_); }

  Result<std::unique_ptr<GradientSource>> make_source(int, int max_rows) override {
    FS_CHECK(max_rows <= max_rows_);
    return std::unique_ptr<GradientSource>(
        std::make_unique<ResidentSource>(*device_, pass_, *ops_, *weights_, recompute_));
  }

 private:
  static constexpr size_t kStaging = size_t{4} << 20;  // floats in a half

  const ModelConfig config_;
  const ParameterLayout layout_;
  const Precision precision_;
  const std::unique_ptr<Device> device_;
  Recompute recompute_ = Recompute::kNone;
  int max_rows_ = 0;
  std::unique_ptr<TrainOps> ops_;
  std::unique_ptr<TrainWeights> weights_;
  std::shared_ptr<SharedPass> pass_;
  mutable std::mutex staging_mutex_;
  std::unique_ptr<DeviceBuffer> staging_[2];
};

}  // namespace

DeviceShare resident_share(const TrainPlan& plan) {
  DeviceShare share{.gradients = card_gradient_buffers(plan), .optimiser = true};
  if (plan.cards > 1) {
    share.cards = plan.cards;
    if (plan.reduce == GradientReduce::kRing) return share;
    share.scratch = plan.shards / plan.cards *
                    static_cast<int>(GradientTree::depth(static_cast<uint32_t>(plan.microbatches)));
  }
  return share;
}

std::string resident_numerics(const Device& device) { return device.numerics_id() + "+optimiser"; }

Result<std::unique_ptr<TrainBackend>> make_resident_backend(const ModelConfig& config,
                                                            Precision precision,
                                                            std::unique_ptr<Device> device,
                                                            const TrainPlan& plan,
                                                            std::optional<Recompute> recompute) {
  auto backend = std::make_unique<ResidentBackend>(config, precision, std::move(device));
  FS_TRY(backend->open(plan, recompute));
  return std::unique_ptr<TrainBackend>(std::move(backend));
}

}  // namespace fastserve
