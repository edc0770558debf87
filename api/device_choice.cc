#include "api/device_choice.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>

#include "cpu/cpu_device.h"
#include "gpu/emulated_device.h"
#include "gpu/loader.h"

namespace fastserve {
namespace {

constexpr std::string_view kEmulated = "emulated";

/// Bytes of "emulated" (0: as it likes) or "emulated:BYTES"; nothing for another word.
std::optional<uint64_t> emulated_memory(std::string_view wanted) {
  if (!wanted.starts_with(kEmulated)) return std::nullopt;
  wanted.remove_prefix(kEmulated.size());
  uint64_t bytes = 0;
  if (wanted.empty()) return bytes;
  if (wanted.front() != ':') return std::nullopt;
  const char* const end = wanted.data() + wanted.size();
  const auto read = std::from_chars(wanted.data() + 1, end, bytes);
  if (read.ec != std::errc() || read.ptr != end || bytes == 0) return std::nullopt;
  return bytes;
}

DeviceFactory cpu_factory(Isa isa) {
  return [isa](int lanes) { return make_cpu_device({lanes, isa}); };
}

/// The factory of the first GPU that is fit.
Result<DeviceFactory> gpu_factory(const Path& plans) {
  FS_ASSIGN(const GpuLoader loader, GpuLoader::open(GpuSearch::standard()));
  FS_ASSIGN(const int index, loader.first_usable());
  return DeviceFactory([loader, index, plans](int) { return loader.make_device(index, plans); });
}

/// Whether it opens shows when it is opened.
Result<ChosenDevice> opened(std::string name, DeviceFactory make, DeviceFactory make_host,
                            int lanes) {
  FS_ASSIGN(const auto device, make(lanes));
  ChosenDevice chosen;
  chosen.name = std::move(name);
  chosen.description = device->description();
  chosen.make = std::move(make);
  if (!device->host_memory()) chosen.make_host = std::move(make_host);
  return chosen;
}

Result<ChosenDevice> choose_gpu(Isa isa, int lanes, const Path& plans) {
  FS_ASSIGN(DeviceFactory make, gpu_factory(plans));
  return opened("cuda", std::move(make), cpu_factory(isa), lanes);
}

std::string sentence(const Error& error) {
  return error.where.empty() ? error.what : error.where + " " + error.what;
}

}  // namespace

std::string ChosenDevice::line() const {
  return "device " + description + (why.empty() ? "" : " (" + why + ")");
}

DeviceFactory with_graph_use(DeviceFactory make, GraphUse use) {
  return [make = std::move(make), use = std::move(use)](int lanes) {
    auto device = make(lanes);
    if (device.ok()) (*device)->set_graph_use(use);
    return device;
  };
}

Status check_device_name(const std::string& wanted) {
  if (wanted == "auto" || wanted == "cpu" || wanted == "cuda") return {};
  if (has_emulated_device() && emulated_memory(wanted)) return {};
  return Error{ErrorCode::kInvalidArgument, "is no device", wanted, "cpu, cuda or auto"};
}

Result<ChosenDevice> choose_device(const std::string& wanted, Isa isa, int lanes,
                                   const Path& plans) {
  FS_TRY(check_device_name(wanted));
  if (const auto memory = emulated_memory(wanted))
    return opened(
        wanted, [memory](int threads) { return make_emulated_device(threads, *memory); },
        cpu_factory(isa), lanes);
  if (wanted == "cpu") return opened(wanted, cpu_factory(isa), {}, lanes);
  auto gpu = choose_gpu(isa, lanes, plans);
  if (wanted == "cuda") {
    if (gpu.ok()) return gpu;
    Error error = std::move(gpu).error();
    error.where = error.where.empty() ? "--device cuda" : "--device cuda, " + error.where;
    error.hint += fmt::format(
        "{}fsctl devices tells what is missing; docs/gpu.md names the "
        "packages; --device cpu does without",
        error.hint.empty() ? "" : "; ");
    return error;
  }
  if (gpu.ok()) {
    gpu->why = "a GPU that is fit; --device cpu does without";
    return gpu;
  }
  FS_ASSIGN(ChosenDevice cpu, opened("cpu", cpu_factory(isa), {}, lanes));
  cpu.why = "no GPU: " + sentence(gpu.error());
  return cpu;
}

}  // namespace fastserve
