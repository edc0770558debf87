#include "gpu/cuda/shared_library.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdlib>
#include <sstream>
#include <vector>

namespace fastserve::gpu {
namespace {

/// In the order they are tried; an empty one is the system's own search.
std::vector<std::string> folders() {
  std::vector<std::string> found;
  if (const char* named = std::getenv("FASTSERVE_CUDA_LIBRARIES"); named != nullptr) {
    std::istringstream parts(named);
    for (std::string folder; std::getline(parts, folder, ':');)
      if (!folder.empty()) found.push_back(folder + "/");
  }
  for (const char* folder : {"", "/usr/local/cuda/lib64/", "/usr/local/cuda/lib/"})
    found.emplace_back(folder);
  return found;
}

}  // namespace

Result<SharedLibrary> SharedLibrary::open(const std::string& name) {
  std::string why;
  for (const std::string& folder : folders()) {
    if (void* handle = ::dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL); handle != nullptr)
      return SharedLibrary(handle, name);
    const char* said = ::dlerror();
    if (why.empty() && said != nullptr) why = said;
  }
  return Error{ErrorCode::kNotFound, why, name, ""};
}

Result<void*> SharedLibrary::symbol(const char* name) const {
  if (void* found = ::dlsym(handle_, name); found != nullptr) return found;
  return Error{ErrorCode::kUnsupported, std::string("has no ") + name, path(), ""};
}

std::string SharedLibrary::path() const {
  link_map* map = nullptr;
  if (::dlinfo(handle_, RTLD_DI_LINKMAP, &map) != 0 || map == nullptr) return name_;
  return map->l_name;
}

std::string version_text(int major, int minor, int patch) {
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
}

}  // namespace fastserve::gpu
