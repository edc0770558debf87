#include "cpu/cpu_device.h"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "base/file.h"
#include "cpu/decode/decode_ops.h"
#include "cpu/host_memory.h"
#include "cpu/lane_pool.h"
#include "cpu/reference/reference_ops.h"
#include "cpu/train/train_ops.h"

namespace fastserve {
namespace {

class HostBuffer final : public DeviceBuffer {
 public:
  explicit HostBuffer(HostMemory memory) : memory_(std::move(memory)) {}
  void* data() override { return memory_.data(); }
  size_t bytes() const override { return memory_.size(); }

 private:
  HostMemory memory_;
};

/// Memory and ordering are the same for both: the host's own, and every call done when it returns.
class HostDevice : public Device {
 public:
  Result<std::unique_ptr<DeviceBuffer>> allocate(size_t bytes) override {
    FS_ASSIGN(HostMemory memory, HostMemory::allocate(bytes, "a device buffer"));
    return std::unique_ptr<DeviceBuffer>(new HostBuffer(std::move(memory)));
  }
  bool host_memory() const override { return true; }
  uint64_t available_memory() const override { return fastserve::available_memory(); }
  Result<std::unique_ptr<DeviceBuffer>> allocate_host(size_t bytes) override {
    return allocate(bytes);
  }
  void copy_in(void* device, const void* host, size_t bytes) override {
    if (bytes != 0) std::memcpy(device, host, bytes);
  }
  void copy_out(void* host, const void* device, size_t bytes) override {
    if (bytes != 0) std::memcpy(host, device, bytes);
  }
  void fill_zero(void* device, size_t bytes) override {
    if (bytes != 0) std::memset(device, 0, bytes);
  }
  Status sync() override { return {}; }
};

class CpuDevice final : public HostDevice {
 public:
  explicit CpuDevice(const CpuDeviceOptions& options) : isa_(options.isa), lanes_(options.lanes) {}
  std::string description() const override {
    const int lanes = lanes_.lanes();
    return "cpu " + std::string(isa_name(isa_)) + ", " + std::to_string(lanes) +
           (lanes == 1 ? " lane" : " lanes");
  }
  std::string numerics_id() const override { return "cpu/" + std::string(isa_name(isa_)); }
  std::unique_ptr<TrainOps> make_train_ops(Precision precision) override {
    return make_cpu_train_ops(isa_, precision, lanes_);
  }
  std::unique_ptr<DecodeOps> make_decode_ops() override {
    return make_cpu_decode_ops(isa_, lanes_);
  }

 private:
  const Isa isa_;
  LanePool lanes_;
};

class ReferenceDevice final : public HostDevice {
 public:
  std::string description() const override { return "cpu reference, 1 lane"; }
  std::string numerics_id() const override { return "cpu/reference"; }
  std::unique_ptr<TrainOps> make_train_ops(Precision precision) override {
    return make_reference_train_ops(precision);
  }
  std::unique_ptr<DecodeOps> make_decode_ops() override { return make_reference_decode_ops(); }
};

/// Whole cores the cgroup's CPU quota pays for, at least 1; `most` when there is no quota.
int quota_cores(int most) {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':'), path = line.find(':', colon + 1);
    if (path == std::string::npos) continue;
    const std::string controllers = line.substr(colon + 1, path - colon - 1);
    const bool unified = controllers.empty();
    if (!unified && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    for (Path group = line.substr(path + 1);; group = group.parent_path()) {
      const Path folder =
          Path(unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu") / group.relative_path();
      double quota = 0, period = 0;
      if (unified) {
        std::ifstream max(folder / "cpu.max");  // "max 100000" when unlimited: reading fails
        max >> quota >> period;
      } else {
        std::ifstream(folder / "cpu.cfs_quota_us") >> quota;  // -1 when unlimited
        std::ifstream(folder / "cpu.cfs_period_us") >> period;
      }
      if (quota > 0 && period > 0)
        most = std::min(most, std::max(1, static_cast<int>(quota / period + 0.5)));
      if (!group.has_relative_path()) break;
    }
  }
  return most;
}

}  // namespace

Result<std::unique_ptr<Device>> make_cpu_device(const CpuDeviceOptions& options) {
  if (options.lanes < 1 || options.lanes > 1024)
    return Error{ErrorCode::kInvalidArgument,
                 "a CPU device has 1 to 1024 lanes, not " + std::to_string(options.lanes), "",
                 "this process may use " + std::to_string(usable_cores()) + " cores"};
  if (options.isa > best_isa())
    return Error{ErrorCode::kUnsupported,
                 "this processor cannot run " + std::string(isa_name(options.isa)), "",
                 "its best is " + std::string(isa_name(best_isa()))};
  return std::unique_ptr<Device>(new CpuDevice(options));
}

Result<DeviceFactory> cpu_devices() {
  FS_ASSIGN(const Isa isa, choose_isa());
  return DeviceFactory([isa](int lanes) { return make_cpu_device({lanes, isa}); });
}

std::unique_ptr<Device> make_reference_device() { return std::make_unique<ReferenceDevice>(); }

int usable_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  const int cores = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
  return quota_cores(std::max(1, cores));
}

}  // namespace fastserve
