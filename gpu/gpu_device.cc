#include "gpu/gpu_device.h"

#include "gpu/decode_ops.h"
#include "gpu/train_ops.h"

namespace fastserve::gpu {
namespace {

class GpuBuffer final : public DeviceBuffer {
 public:
  explicit GpuBuffer(Memory memory) : memory_(std::move(memory)) {}
  void* data() override { return memory_.data(); }
  size_t bytes() const override { return memory_.bytes(); }

 private:
  Memory memory_;
};

class GpuDevice final : public Device {
 public:
  GpuDevice(std::unique_ptr<Runtime> runtime, std::unique_ptr<MatmulEngine> fast,
            std::unique_ptr<AttentionEngine> attention, PinnedShelf* shelf)
      : shelf_(shelf),
        runtime_(std::move(runtime)),
        fast_(std::move(fast)),
        mma_(make_mma_engine(*runtime_)),
        attention_(std::move(attention)) {
    if (fast_) engines_.push_back(fast_.get());
    engines_.push_back(mma_.get());
  }

  Runtime& runtime() { return *runtime_; }
  std::string description() const override {
    const DeviceProperties& p = runtime_->properties();
    return "gpu " + p.name + ", " + std::to_string(p.multiprocessors) + " multiprocessors";
  }
  std::string numerics_id() const override {
    const DeviceProperties& p = runtime_->properties();
    std::string id =
        "gpu/" + p.name + "/" + std::to_string(p.major) + "." + std::to_string(p.minor);
    for (const MatmulEngine* engine : engines_) id.append("/").append(engine->name());
    if (attention_) id.append("/").append(attention_->name());
    return id;
  }
  Result<std::unique_ptr<DeviceBuffer>> allocate(size_t bytes) override {
    FS_ASSIGN(Memory memory, Memory::allocate(*runtime_, bytes));
    return std::unique_ptr<DeviceBuffer>(new GpuBuffer(std::move(memory)));
  }
  bool host_memory() const override { return false; }
  uint64_t available_memory() const override { return runtime_->available(); }
  uint64_t library_memory() const override { return attention_ ? attention_->most_scratch() : 0; }
  Result<std::unique_ptr<DeviceBuffer>> allocate_host(size_t bytes) override {
    return runtime_->allocate_host(bytes);
  }
  bool pinned(const void* host, size_t bytes) const override {
    return runtime_->pinned(host, bytes);
  }
  void copy_in(void* device, const void* host, size_t bytes) override {
    runtime_->copy_in(device, host, bytes);
  }
  DeviceTicket copy_in_async(void* device, const void* pinned, size_t bytes) override {
    return runtime_->copy_in_async(device, pinned, bytes);
  }
  DeviceTicket mark() override { return runtime_->mark(); }
  void wait(DeviceTicket ticket) override { runtime_->wait(ticket); }
  void copy_out(void* host, const void* device, size_t bytes) override {
    runtime_->copy_out(host, device, bytes);
  }
  void fill_zero(void* device, size_t bytes) override { runtime_->fill_zero(device, bytes); }
  CopyMark copy_out_async(void* host, const void* device, size_t bytes) override {
    return runtime_->copy_out_async(host, device, bytes);
  }
  CopyMark copy_out_beside(void* host, const void* device, size_t bytes) override {
    return runtime_->copy_out_beside(host, device, bytes);
  }
  bool wait_for(CopyMark mark) override { return runtime_->wait_for(mark); }
  void copy_in_beside(void* device, const void* host, size_t bytes) override {
    runtime_->copy_in_beside(device, host, bytes);
  }
  Status sync() override { return runtime_->sync(); }
  bool captures() const override { return true; }
  void begin_capture() override { runtime_->begin_capture(); }
  Result<std::unique_ptr<DeviceGraph>> end_capture() override { return runtime_->end_capture(); }
  void launch(DeviceGraph& graph) override { runtime_->launch(graph); }
  std::unique_ptr<TrainOps> make_train_ops(Precision precision) override {
    return gpu::make_train_ops(*runtime_, engines_, attention_.get(), precision);
  }
  std::unique_ptr<DecodeOps> make_decode_ops() override {
    return gpu::make_decode_ops(*runtime_, Staging::kPiece, shelf_);
  }

 private:
  PinnedShelf* const shelf_;
  std::unique_ptr<Runtime> runtime_;
  std::unique_ptr<MatmulEngine> fast_, mma_;
  std::unique_ptr<AttentionEngine> attention_;
  std::vector<MatmulEngine*> engines_;
};

}  // namespace

std::unique_ptr<Device> make_gpu_device(std::unique_ptr<Runtime> runtime,
                                        std::unique_ptr<MatmulEngine> fast,
                                        std::unique_ptr<AttentionEngine> attention,
                                        PinnedShelf* shelf) {
  return std::make_unique<GpuDevice>(std::move(runtime), std::move(fast), std::move(attention),
                                     shelf);
}

Runtime& runtime_of(Device& device) { return static_cast<GpuDevice&>(device).runtime(); }

}  // namespace fastserve::gpu
