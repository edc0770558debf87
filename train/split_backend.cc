#include "train/split_backend.h"

#include <algorithm>
#include <atomic>
#include <deque>

#include "train/device_memory.h"

namespace fastserve {
namespace {

/// The host's weights, and how often each tile was refreshed.
///
/// Threads: as TrainBackend's masters() and refresh().
class HostWeights {
 public:
  HostWeights(std::unique_ptr<DeviceBuffer> memory, std::vector<ParameterTile> tiles)
      : memory_(std::move(memory)), tiles_(std::move(tiles)), changes_(tiles_.size()) {}
  std::span<float> masters() {
    return {static_cast<float*>(memory_->data()), memory_->bytes() / sizeof(float)};
  }
  const std::vector<ParameterTile>& tiles() const { return tiles_; }
  void refresh(const ParameterTile& tile) {
    const auto at =
        std::lower_bound(tiles_.begin(), tiles_.end(), tile.offset,
                         [](const ParameterTile& t, size_t offset) { return t.offset < offset; });
    FS_CHECK(at != tiles_.end() && at->offset == tile.offset);
    changes_[static_cast<size_t>(at - tiles_.begin())]++;
  }
  uint64_t changes(size_t tile) const { return changes_[tile]; }

 private:
  std::unique_ptr<DeviceBuffer> memory_;
  const std::vector<ParameterTile> tiles_;
  std::vector<std::atomic<uint64_t>> changes_;
};

class SplitSource final : public GradientSource {
 public:
  struct Parts {
    std::unique_ptr<Device> device, host;
    std::unique_ptr<TrainOps> ops, host_ops;
    std::unique_ptr<TrainWeights> weights;
    std::unique_ptr<DeviceBuffer> gradient;
    std::unique_ptr<TrainPass> pass;
    Recompute recompute = Recompute::kNone;
  };
  SplitSource(Parts parts, HostWeights& shared)
      : p_(std::move(parts)), shared_(shared), seen_(shared.tiles().size(), kNever) {}

  Result<double> run(const Microbatch& batch, float scale, float* grad) override {
    take_weights(shared_.masters().size());
    float* const own = gradient_for(grad);
    const double loss = p_.pass->run(*p_.weights, batch, scale, own);
    if (grad != nullptr) p_.device->copy_out(grad, own, shared_.masters().size() * sizeof(float));
    FS_TRY(p_.device->sync());
    return loss;
  }
  Result<double> run_along(const Microbatch& batch, float scale, float* grad,
                           PassFlow& flow) override {
    CopyingFlow copying(*this, flow, grad);
    const double loss = p_.pass->run(*p_.weights, batch, scale, gradient_for(grad), {}, &copying);
    copying.finish();
    FS_TRY(p_.device->sync());
    return loss;
  }
  void add(float* into, const float* other) override {
    p_.host_ops->add(into, other, into, shared_.masters().size());
  }
  void add_part(float* into, const float* other, size_t begin, size_t end) override {
    p_.host_ops->add(into + begin, other + begin, into + begin, end - begin);
  }
  size_t bytes() const override { return p_.pass->bytes(); }
  Recompute recompute() const override { return p_.recompute; }

 private:
  static constexpr uint64_t kNever = ~uint64_t{0};

  /// Weights go in before the layers that read them, and gradients come out behind theirs.
  class CopyingFlow final : public PassFlow {
   public:
    CopyingFlow(SplitSource& source, PassFlow& flow, float* grad)
        : source_(source),
          flow_(flow),
          grad_(grad),
          out_(grad != nullptr ? source.shared_.masters().size() : 0) {}
    bool await_weights(size_t end) override {
      if (!flow_.await_weights(end)) return !(stopped_ = true);
      source_.take_weights(end);
      return true;
    }
    void gradient_final(size_t from) override {
      begin_to_copy(from);
      hand_over(kAhead);
    }
    /// What is still to come out, when the pass has ended.
    void finish() {
      if (!stopped_) begin_to_copy(0);
      hand_over(0);
    }

   private:
    /// Ranges whose copy may not have ended while the pass goes on: the device has work meanwhile.
    static constexpr size_t kAhead = 2;
    struct Range {
      size_t from;
      Device::CopyMark copy;
    };

    void begin_to_copy(size_t from) {
      if (from >= out_) return;
      ranges_.push_back({from, source_.p_.device->copy_out_beside(
                                   grad_ + from, source_.gradient_for(grad_) + from,
                                   (out_ - from) * sizeof(float))});
      out_ = from;
    }
    void hand_over(size_t keep) {
      for (; ranges_.size() > keep; ranges_.pop_front()) {
        good_ = source_.p_.device->wait_for(ranges_.front().copy) && good_;
        if (good_) flow_.gradient_final(ranges_.front().from);
      }
    }

    SplitSource& source_;
    PassFlow& flow_;
    float* const grad_;
    size_t out_;                // elements from here on are on the host, or on their way
    std::deque<Range> ranges_;  // on their way
    bool stopped_ = false, good_ = true;
  };

  float* gradient_for(const float* grad) const {
    return grad != nullptr ? static_cast<float*>(p_.gradient->data()) : nullptr;
  }

  /// What has changed since the last time, of elements before `end`; a run of tiles of one matrix
  /// goes over in one piece.
  void take_weights(size_t end) {
    const auto& tiles = shared_.tiles();
    const auto stale = [&](size_t i) {
      return tiles[i].offset < end && seen_[i] != shared_.changes(i);
    };
    for (size_t i = 0; i < tiles.size() && tiles[i].offset < end;) {
      if (!stale(i)) {
        ++i;
        continue;
      }
      ParameterTile run = tiles[i];
      run.size = 0;
      run.rows = 0;
      for (; i < tiles.size() && stale(i) && tiles[i].matrix == run.matrix &&
             tiles[i].offset == run.offset + run.size;
           ++i) {
        run.size += tiles[i].size;
        run.rows += tiles[i].rows;
        seen_[i] = shared_.changes(i);
      }
      // The last pass has ended, and the gate keeps these as they are until this one has.
      p_.device->copy_in_beside(p_.weights->masters().data() + run.offset,
                                shared_.masters().data() + run.offset, run.size * sizeof(float));
      p_.weights->refresh(run, *p_.ops);
    }
  }

  Parts p_;
  HostWeights& shared_;
  std::vector<uint64_t> seen_;  // of each tile: its changes when it was copied
};

class SplitBackend final : public TrainBackend {
 public:
  SplitBackend(const ModelConfig& config, Precision precision, std::unique_ptr<Device> first,
               DeviceFactory make_device, DeviceFactory make_host,
               std::optional<Recompute> recompute)
      : config_(config),
        layout_(config),
        precision_(precision),
        make_device_(std::move(make_device)),
        make_host_(std::move(make_host)),
        recompute_(recompute),
        device_(std::move(first)) {}

  Status open() {
    FS_ASSIGN(host_, make_host_(1));
    FS_CHECK(host_->host_memory() && !device_->host_memory());
    host_ops_ = host_->make_train_ops(precision_);
    FS_ASSIGN(auto masters, device_->allocate_host(layout_.elements() * sizeof(float)));
    weights_ =
        std::make_unique<HostWeights>(std::move(masters), TrainWeights::tiles_of(config_, layout_));
    return {};
  }

  std::span<float> masters() override { return weights_->masters(); }
  const std::vector<ParameterTile>& tiles() const override { return weights_->tiles(); }
  void refresh(const ParameterTile& tile) override { weights_->refresh(tile); }
  const TrainOps& ops() const override { return *host_ops_; }
  Result<std::unique_ptr<DeviceBuffer>> allocate(size_t bytes) override {
    return device_->allocate_host(bytes);
  }
  size_t bytes() const override { return layout_.elements() * sizeof(float); }
  std::string description() const override { return device_->description(); }
  std::string numerics_id() const override { return split_numerics(*device_, *host_); }

  Result<std::unique_ptr<GradientSource>> make_source(int lanes, int max_rows) override {
    SplitSource::Parts p;
    FS_ASSIGN(p.device, make_device_(lanes));
    FS_ASSIGN(p.host, make_host_(lanes));
    if (split_numerics(*p.device, *p.host) != numerics_id())
      return Error{ErrorCode::kInvalidArgument,
                   "computes other bits than the job's device: " + p.device->numerics_id(),
                   p.device->description(), "train on devices of one kind"};
    FS_ASSIGN(p.recompute, choose_recompute(*p.device, config_, layout_, precision_, max_rows,
                                            DeviceShare(), recompute_));
    p.ops = p.device->make_train_ops(precision_);
    p.host_ops = p.host->make_train_ops(precision_);
    FS_ASSIGN(p.weights, TrainWeights::create(*p.device, *p.ops, config_, layout_));
    FS_ASSIGN(p.gradient, p.device->allocate(layout_.elements() * sizeof(float)));
    FS_ASSIGN(p.pass,
              TrainPass::create(*p.device, *p.ops, config_, layout_, max_rows, p.recompute));
    return std::unique_ptr<GradientSource>(std::make_unique<SplitSource>(std::move(p), *weights_));
  }

 private:
  const ModelConfig config_;
  const ParameterLayout layout_;
  const Precision precision_;
  const DeviceFactory make_device_, make_host_;
  const std::optional<Recompute> recompute_;
  std::unique_ptr<Device> device_, host_;  // device_ computes nothing: it tells and pins
  std::unique_ptr<TrainOps> host_ops_;
  std::unique_ptr<HostWeights> weights_;
};

}  // namespace

std::string split_numerics(const Device& device, const Device& host) {
  return device.numerics_id() + "+" + host.numerics_id();
}

Result<std::unique_ptr<TrainBackend>> make_split_backend(
    const ModelConfig& config, Precision precision, std::unique_ptr<Device> first,
    DeviceFactory make_device, const DeviceFactory& make_host, std::optional<Recompute> recompute) {
  auto backend = std::make_unique<SplitBackend>(config, precision, std::move(first),
                                                std::move(make_device), make_host, recompute);
  FS_TRY(backend->open());
  return std::unique_ptr<TrainBackend>(std::move(backend));
}

}  // namespace fastserve
