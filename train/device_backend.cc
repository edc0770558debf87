#include "train/device_backend.h"

#include <algorithm>
#include <atomic>

#include "train/split_backend.h"

namespace fastserve {
namespace {

/// Says that a gradient is final when the device has written it.
class SyncedFlow final : public PassFlow {
 public:
  SyncedFlow(Device& device, PassFlow& flow) : device_(device), flow_(flow) {}
  bool await_weights(size_t end) override { return flow_.await_weights(end); }
  void gradient_final(size_t from) override {
    if (status_.ok()) status_ = device_.sync();
    if (status_.ok()) flow_.gradient_final(from);
  }
  const Status& status() const { return status_; }

 private:
  Device& device_;
  PassFlow& flow_;
  Status status_;
};

class DeviceSource final : public GradientSource {
 public:
  DeviceSource(std::unique_ptr<Device> device, std::unique_ptr<TrainOps> ops,
               std::unique_ptr<TrainPass> pass, const TrainWeights& weights, Recompute recompute)
      : device_(std::move(device)),
        ops_(std::move(ops)),
        pass_(std::move(pass)),
        weights_(weights),
        recompute_(recompute) {}

  Result<double> run(const Microbatch& batch, float scale, float* grad) override {
    const double loss = pass_->run(weights_, batch, scale, grad);
    FS_TRY(device_->sync());
    return loss;
  }
  Result<double> run_along(const Microbatch& batch, float scale, float* grad,
                           PassFlow& flow) override {
    SyncedFlow synced(*device_, flow);
    const double loss = pass_->run(weights_, batch, scale, grad, {}, &synced);
    FS_TRY(synced.status());
    FS_TRY(device_->sync());
    return loss;
  }
  void add(float* into, const float* other) override {
    ops_->add(into, other, into, weights_.masters().size());
  }
  void add_part(float* into, const float* other, size_t begin, size_t end) override {
    ops_->add(into + begin, other + begin, into + begin, end - begin);
  }
  size_t bytes() const override { return pass_->bytes(); }
  Recompute recompute() const override { return recompute_; }

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<TrainOps> ops_;
  std::unique_ptr<TrainPass> pass_;
  const TrainWeights& weights_;
  const Recompute recompute_;
};

class DeviceBackend final : public TrainBackend {
 public:
  DeviceBackend(const ModelConfig& config, Precision precision, std::unique_ptr<Device> first,
                DeviceFactory make_device, Recompute recompute)
      : config_(config),
        layout_(config),
        precision_(precision),
        make_device_(std::move(make_device)),
        recompute_(recompute),
        device_(std::move(first)) {}

  Status open() {
    ops_ = device_->make_train_ops(precision_);
    FS_ASSIGN(weights_, TrainWeights::create(*device_, *ops_, config_, layout_));
    return {};
  }

  std::span<float> masters() override { return weights_->masters(); }
  const std::vector<ParameterTile>& tiles() const override { return weights_->tiles(); }
  void refresh(const ParameterTile& tile) override { weights_->refresh(tile, *ops_); }
  const TrainOps& ops() const override { return *ops_; }
  Result<std::unique_ptr<DeviceBuffer>> allocate(size_t bytes) override {
    return device_->allocate(bytes);
  }
  size_t bytes() const override {
    // Beside the masters each matrix is packed twice, for x W^T and for dy W.
    size_t packed = 0;
    const size_t width = precision_ == Precision::kBFloat16 ? 2 : 4;
    for (const ParameterTile& tile : tiles())
      packed += tile.matrix >= 0 ? 2 * width * tile.size : 0;
    return layout_.elements() * sizeof(float) + packed;
  }
  std::string description() const override { return device_->description(); }
  std::string numerics_id() const override { return device_->numerics_id(); }

  Result<std::unique_ptr<GradientSource>> make_source(int lanes, int max_rows) override {
    FS_ASSIGN(auto device, make_device_(lanes));
    if (device->numerics_id() != numerics_id())
      return Error{ErrorCode::kInvalidArgument,
                   "computes other bits than the job's device: " + device->numerics_id(),
                   device->description(), "train on devices of one kind"};
    auto ops = device->make_train_ops(precision_);
    FS_ASSIGN(auto pass, TrainPass::create(*device, *ops, config_, layout_, max_rows, recompute_));
    return std::unique_ptr<GradientSource>(std::make_unique<DeviceSource>(
        std::move(device), std::move(ops), std::move(pass), *weights_, recompute_));
  }

 private:
  ModelConfig config_;
  ParameterLayout layout_;
  Precision precision_;
  DeviceFactory make_device_;
  const Recompute recompute_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<TrainOps> ops_;
  std::unique_ptr<TrainWeights> weights_;
};

}  // namespace

Result<std::unique_ptr<TrainBackend>> make_device_backend(const ModelConfig& config,
                                                          Precision precision,
                                                          DeviceFactory make_device,
                                                          const DeviceFactory& make_host,
                                                          std::optional<Recompute> recompute) {
  FS_ASSIGN(auto first, make_device(1));
  if (!first->host_memory())
    return make_split_backend(config, precision, std::move(first), std::move(make_device),
                              make_host, recompute);
  auto backend =
      std::make_unique<DeviceBackend>(config, precision, std::move(first), std::move(make_device),
                                      recompute.value_or(Recompute::kNone));
  FS_TRY(backend->open());
  return std::unique_ptr<TrainBackend>(std::move(backend));
}

DeviceFactory in_turn(std::vector<DeviceFactory> all) {
  if (all.size() == 1) return all.front();
  const auto next = std::make_shared<std::atomic<size_t>>(0);
  return [all = std::move(all), next](int lanes) { return all[(*next)++ % all.size()](lanes); };
}

Result<std::vector<DeviceFactory>> that_open(const std::vector<DeviceFactory>& all,
                                             const Log& log) {
  if (all.size() == 1) return all;
  std::vector<DeviceFactory> open;
  std::vector<Error> others;
  for (const DeviceFactory& make : all) {
    const auto device = make(1);
    if (device.ok())
      open.push_back(make);
    else
      others.push_back(device.error());
  }
  if (open.empty()) return others.back();
  for (const Error& error : others) log.warning("goes on without a device: " + error.message());
  return open;
}

Result<std::string> training_numerics(const DeviceFactory& make_device,
                                      const DeviceFactory& make_host) {
  FS_ASSIGN(const auto device, make_device(1));
  if (device->host_memory()) return device->numerics_id();
  FS_ASSIGN(const auto host, make_host(1));
  return split_numerics(*device, *host);
}

}  // namespace fastserve
