#include "gpu/loader.h"

#include <dlfcn.h>

#include <cstdlib>
#include <system_error>
#include <utility>

#include "gpu/plugin.h"
#include "gpu_build_id.h"

namespace fastserve {
namespace {

constexpr const char* kFileName = "libfastserve_cuda.so";
constexpr const char* kRebuild =
    "build the program and its plugin together: cmake --build --preset release";

struct Closed {
  void operator()(void* library) const { ::dlclose(library); }
};
using Library = std::unique_ptr<void, Closed>;

Error not_there(const GpuSearch& search) {
  std::string folders;
  for (const Path& folder : search.folders)
    folders += (folders.empty() ? "" : ", ") + folder.string();
  return {
      ErrorCode::kNotFound, std::string("there is no GPU plugin (") + kFileName + ")", "",
      "it was looked for in " + folders +
          "; it is built where nvcc is found, docs/gpu.md tells how. Everything runs on the CPU "
          "without it"};
}

Result<Path> find(const GpuSearch& search) {
  std::error_code ignored;
  if (!search.plugin.empty()) {
    if (std::filesystem::exists(search.plugin, ignored)) return search.plugin;
    return Error{ErrorCode::kNotFound, "there is no such file", search.plugin,
                 "unset FASTSERVE_CUDA_PLUGIN, or let it name the GPU plugin"};
  }
  for (const Path& folder : search.folders)
    if (std::filesystem::exists(folder / kFileName, ignored)) return folder / kFileName;
  return not_there(search);
}

Error refused_by_linker(const Path& path) {
  const char* why = ::dlerror();
  return {ErrorCode::kCorrupt,
          std::string("cannot be opened: ") + (why != nullptr ? why : "no reason was given"), path,
          "build it on this machine: docs/gpu.md"};
}

/// kUnsupported unless the plugin is of this build.
Status check_entry(const GpuPluginEntry& entry, const Path& path) {
  if (entry.abi != kGpuPluginAbi)
    return Error{ErrorCode::kUnsupported,
                 "speaks version " + std::to_string(entry.abi) +
                     " of the plugin interface and this program version " +
                     std::to_string(kGpuPluginAbi),
                 path, kRebuild};
  if (std::string_view(entry.build_id) != gpu_build_id())
    return Error{ErrorCode::kUnsupported,
                 std::string("is of another build (") + entry.build_id + ") than this program (" +
                     gpu_build_id() + ")",
                 path, kRebuild};
  return {};
}

Error unusable(const GpuInfo& gpu) {
  return {ErrorCode::kUnsupported, gpu.problem, "GPU " + std::to_string(gpu.index) + " " + gpu.name,
          "fsctl devices tells what can be used here"};
}

}  // namespace

const char* gpu_build_id() { return FASTSERVE_GPU_BUILD_ID; }

GpuSearch GpuSearch::standard() {
  GpuSearch search;
  if (const char* file = std::getenv("FASTSERVE_CUDA_PLUGIN"); file != nullptr && *file != '\0')
    search.plugin = file;
  std::error_code failed;
  const Path program = std::filesystem::read_symlink("/proc/self/exe", failed);
  if (failed) return search;
  const Path folder = program.parent_path();
  search.folders = {folder, folder.parent_path() / "lib", folder.parent_path() / "lib/fastserve"};
  return search;
}

Result<GpuLoader> GpuLoader::open(const GpuSearch& search) {
  FS_ASSIGN(const Path path, find(search));
  ::dlerror();
  // A name without a slash would be looked up in the system's folders.
  const Path absolute = std::filesystem::absolute(path);
  Library library(::dlopen(absolute.c_str(), RTLD_NOW | RTLD_LOCAL));
  if (library == nullptr) return refused_by_linker(path);
  const auto* entry = static_cast<const GpuPluginEntry*>(::dlsym(library.get(), kGpuPluginSymbol));
  if (entry == nullptr)
    return Error{ErrorCode::kCorrupt,
                 std::string("is no GPU plugin: it has no ") + kGpuPluginSymbol, path,
                 "let FASTSERVE_CUDA_PLUGIN name libfastserve_cuda.so, or unset it"};
  FS_TRY(check_entry(*entry, path));
  const GpuPlugin& plugin = entry->plugin();
  // Devices and threads of the CUDA runtime run its code from now on: it is never unloaded.
  static_cast<void>(library.release());
  return GpuLoader(path, plugin);
}

GpuInventory GpuLoader::inventory() const { return plugin_->inventory(); }

Result<std::unique_ptr<Device>> GpuLoader::make_device(int index, const Path& plans) const {
  const GpuInventory found = inventory();
  if (found.problem) return *found.problem;
  for (const GpuInfo& gpu : found.gpus) {
    if (gpu.index != index) continue;
    if (!gpu.problem.empty()) return unusable(gpu);
    return plugin_->make_device(index, plans);
  }
  return Error{ErrorCode::kNotFound,
               "there is no GPU " + std::to_string(index) + "; the driver shows " +
                   std::to_string(found.gpus.size()),
               "", "fsctl devices lists them; CUDA_VISIBLE_DEVICES may hide some"};
}

Result<std::unique_ptr<DeviceLink>> GpuLoader::link(std::span<Device* const> devices) const {
  return plugin_->link(devices);
}

Result<std::unique_ptr<DeviceBuffer>> GpuLoader::allocate_shared(size_t bytes) const {
  return plugin_->allocate_shared(bytes);
}

Result<int> GpuLoader::first_usable() const {
  const GpuInventory found = inventory();
  if (found.problem) return *found.problem;
  for (const GpuInfo& gpu : found.gpus)
    if (gpu.problem.empty()) return gpu.index;
  if (!found.gpus.empty()) return unusable(found.gpus.front());
  return Error{ErrorCode::kNotFound, "the driver shows no GPU", "",
               "CUDA_VISIBLE_DEVICES may hide them"};
}

}  // namespace fastserve
