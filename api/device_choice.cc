#include "api/device_choice.h"

#include <fmt/format.h>

#include <optional>
#include <utility>

#include "api/device_word.h"
#include "api/devices.h"
#include "cpu/cpu_device.h"
#include "gpu/emulated_device.h"
#include "gpu/loader.h"

namespace fastserve {
namespace {

Error unlike(const Device& device, const std::string& first, const std::string& name) {
  return {ErrorCode::kInvalidArgument,
          fmt::format("names cards that compute unlike bits: {}, and {} of {}", first,
                      device.numerics_id(), device.description()),
          "--device " + name, "name cards of one kind: fsctl devices lists them"};
}

DeviceFactory cpu_factory(Isa isa) {
  return [isa](int lanes) { return make_cpu_device({lanes, isa}); };
}

/// Whether they open, and compute the same bits, shows when they are opened.
Result<ChosenDevice> opened(std::string name, std::vector<DeviceFactory> makes,
                            DeviceFactory make_host, int lanes) {
  ChosenDevice chosen;
  std::string first;
  for (const DeviceFactory& make : makes) {
    FS_ASSIGN(const auto device, make(lanes));
    if (&make != &makes.front()) {
      if (device->numerics_id() != first) return unlike(*device, first, name);
      continue;
    }
    first = device->numerics_id();
    chosen.description = device->description();
    if (!device->host_memory()) chosen.make_host = make_host;
  }
  if (makes.size() > 1)
    chosen.description = fmt::format("{} x {}", makes.size(), chosen.description);
  chosen.words = {name};
  chosen.name = std::move(name);
  chosen.make = makes.front();
  chosen.more.assign(makes.begin() + 1, makes.end());
  return chosen;
}

/// Which cards of the machine the word means.
Result<std::vector<int>> indices_of(const CudaWord& word, const GpuLoader& loader) {
  if (!word.indices.empty()) return word.indices;
  FS_ASSIGN(const int first, loader.first_usable());
  if (!word.all) return std::vector<int>{first};
  return gpus_alike(loader.inventory());
}

Result<ChosenDevice> choose_gpu(const std::string& name, const CudaWord& word, Isa isa, int lanes,
                                const Path& plans) {
  FS_ASSIGN(const GpuLoader loader, GpuLoader::open(GpuSearch::standard()));
  FS_ASSIGN(const std::vector<int> indices, indices_of(word, loader));
  std::vector<DeviceFactory> makes;
  for (const int index : indices)
    makes.emplace_back([loader, index, plans](int) { return loader.make_device(index, plans); });
  FS_ASSIGN(ChosenDevice chosen, opened(name, std::move(makes), cpu_factory(isa), lanes));
  if (indices.size() > 1) {
    chosen.words.clear();
    for (const int index : indices) chosen.words.push_back(fmt::format("cuda:{}", index));
  }
  chosen.link = [loader](std::span<Device* const> devices) { return loader.link(devices); };
  return chosen;
}

Result<ChosenDevice> choose_emulated(const std::string& name, const EmulatedWord& word, Isa isa,
                                     int lanes) {
  const DeviceFactory make = [bytes = word.bytes](int threads) {
    return make_emulated_device(threads, bytes);
  };
  FS_ASSIGN(ChosenDevice chosen,
            opened(name, std::vector<DeviceFactory>(static_cast<size_t>(word.cards), make),
                   cpu_factory(isa), lanes));
  const std::string one =
      word.bytes > 0 ? fmt::format("emulated:{}", word.bytes) : std::string("emulated");
  if (word.cards > 1) chosen.words.assign(static_cast<size_t>(word.cards), one);
  chosen.link = link_emulated_devices;
  return chosen;
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

Status ChosenDevice::one_for(const char* doing) const {
  if (more.empty()) return {};
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("names {} cards, and {} works on one", more.size() + 1, doing),
               "--device " + name, "name one of them, as in --device cuda:0; training uses all"};
}

Status check_device_name(const std::string& wanted) {
  if (wanted == "auto" || wanted == "cpu" || parse_cuda_word(wanted)) return {};
  if (has_emulated_device() && parse_emulated_word(wanted)) return {};
  return Error{ErrorCode::kInvalidArgument, "is no device", wanted,
               "cpu, cuda, cuda:INDEX[,INDEX...], cuda:all or auto"};
}

Result<ChosenDevice> choose_device(const std::string& wanted, Isa isa, int lanes,
                                   const Path& plans) {
  FS_TRY(check_device_name(wanted));
  if (const auto emulated = parse_emulated_word(wanted))
    return choose_emulated(wanted, *emulated, isa, lanes);
  if (wanted == "cpu") return opened(wanted, {cpu_factory(isa)}, {}, lanes);
  const auto cuda = parse_cuda_word(wanted);
  auto gpu = choose_gpu(cuda ? wanted : "cuda", cuda.value_or(CudaWord()), isa, lanes, plans);
  if (gpu.ok()) {
    if (!cuda) gpu->why = "a GPU that is fit; --device cpu does without";
    return gpu;
  }
  if (cuda && gpu.error().code == ErrorCode::kInvalidArgument) return gpu;
  if (cuda) {
    Error error = std::move(gpu).error();
    const std::string asked = "--device " + wanted;
    error.where = error.where.empty() ? asked : asked + ", " + error.where;
    error.hint += fmt::format(
        "{}fsctl devices tells what is missing; docs/gpu.md names the "
        "packages; --device cpu does without",
        error.hint.empty() ? "" : "; ");
    return error;
  }
  FS_ASSIGN(ChosenDevice cpu, opened("cpu", {cpu_factory(isa)}, {}, lanes));
  cpu.why = "no GPU: " + sentence(gpu.error());
  return cpu;
}

}  // namespace fastserve
