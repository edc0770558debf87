#include <cstdlib>
#include <cstring>
#include <new>

#include "base/file.h"
#include "cpu/cpu_device.h"
#include "cpu/reference/reference_ops.h"

namespace fastserve {
namespace {

constexpr std::align_val_t kAlignment{64};

class HostBuffer final : public DeviceBuffer {
 public:
  HostBuffer(void* data, size_t bytes) : data_(data), bytes_(bytes) {
    std::memset(data_, 0, bytes_);
  }
  ~HostBuffer() override { ::operator delete(data_, kAlignment); }
  void* data() override { return data_; }
  size_t bytes() const override { return bytes_; }

 private:
  void* data_;
  size_t bytes_;
};

class ReferenceDevice final : public Device {
 public:
  std::string description() const override { return "reference loops, 1 lane"; }
  std::string numerics_id() const override { return "reference"; }

  Result<std::unique_ptr<DeviceBuffer>> allocate(size_t bytes) override {
    void* data = ::operator new(bytes, kAlignment, std::nothrow);
    if (!data)
      return Error{ErrorCode::kResourceExhausted, "no " + human_bytes(bytes) + " of memory left",
                   description(), "take a smaller model or batch"};
    return std::unique_ptr<DeviceBuffer>(std::make_unique<HostBuffer>(data, bytes));
  }
  void copy_in(void* device, const void* host, size_t bytes) override {
    std::memcpy(device, host, bytes);
  }
  void copy_out(void* host, const void* device, size_t bytes) override {
    std::memcpy(host, device, bytes);
  }
  Status sync() override { return {}; }

  std::unique_ptr<TrainOps> make_train_ops(Precision precision) override {
    return make_reference_train_ops(precision);
  }
  std::unique_ptr<DecodeOps> make_decode_ops() override { return make_reference_decode_ops(); }
};

}  // namespace

std::unique_ptr<Device> make_reference_device() { return std::make_unique<ReferenceDevice>(); }

}  // namespace fastserve
