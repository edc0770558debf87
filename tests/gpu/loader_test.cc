#include "gpu/loader.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdlib>

using namespace fastserve;

namespace {

const Path kFakes = FASTSERVE_FAKE_PLUGINS;

GpuSearch only(const std::string& file) { return {kFakes / file, {}}; }

Error refusal(const GpuSearch& search) {
  const auto opened = GpuLoader::open(search);
  REQUIRE_FALSE(opened.ok());
  return opened.error();
}

bool says(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("without a GPU plugin the refusal tells where it was looked for and what to do") {
  const Error error = refusal({{}, {"/nowhere/bin", "/nowhere/lib"}});
  CHECK(error.code == ErrorCode::kNotFound);
  CHECK(says(error.hint, "/nowhere/bin, /nowhere/lib"));
  CHECK(says(error.hint, "docs/gpu.md"));
}

TEST_CASE("a plugin that was named and is not there is not replaced by another") {
  GpuSearch search = only("absent.so");
  search.folders = {kFakes};
  const Error error = refusal(search);
  CHECK(error.code == ErrorCode::kNotFound);
  CHECK(says(error.where, "absent.so"));
  CHECK(says(error.hint, "FASTSERVE_CUDA_PLUGIN"));
}

TEST_CASE("a plugin of another interface version is refused with both versions") {
  const Error error = refusal(only("other_abi.so"));
  CHECK(error.code == ErrorCode::kUnsupported);
  CHECK(says(error.what, "version 7"));
  CHECK(says(error.what, "this program version 1"));
  CHECK(says(error.hint, "together"));
}

TEST_CASE("a plugin of another build is refused before any of its code runs") {
  const Error error = refusal(only("other_build.so"));
  CHECK(error.code == ErrorCode::kUnsupported);
  CHECK(says(error.what, "built-yesterday"));
  CHECK(says(error.what, gpu_build_id()));
}

TEST_CASE("a shared library that is no plugin is told as such") {
  const Error error = refusal(only("no_entry.so"));
  CHECK(error.code == ErrorCode::kCorrupt);
  CHECK(says(error.what, "is no GPU plugin"));
}

TEST_CASE("a plugin with a symbol missing is refused with the symbol's name") {
  const Error error = refusal(only("unresolved.so"));
  CHECK(error.code == ErrorCode::kCorrupt);
  CHECK(says(error.what, "fastserve_nowhere"));
}

TEST_CASE("a file of garbage under the plugin's name is refused with the linker's reason") {
  const Path file = std::filesystem::temp_directory_path() /
                    ("fastserve_garbage_" + std::to_string(::getpid()) + ".so");
  REQUIRE(write_file_atomically(file, "not a shared library").ok());
  const Error error = refusal({file, {}});
  std::filesystem::remove(file);
  CHECK(error.code == ErrorCode::kCorrupt);
  CHECK(says(error.what, "cannot be opened"));
  CHECK(says(error.where, "garbage"));
}

TEST_CASE("the first GPU that can be used is chosen, and one that cannot says why") {
  const auto loader = GpuLoader::open(only("two_gpus.so"));
  REQUIRE(loader.ok());
  CHECK(loader->inventory().gpus.size() == 2);
  REQUIRE(loader->first_usable().ok());
  CHECK(*loader->first_usable() == 1);
  CHECK(loader->make_device(1, {}).error().what == "made GPU 1");
  const Error old = loader->make_device(0, {}).error();
  CHECK(says(old.message(), "GPU 0 old: has compute capability 7.5"));
  CHECK(says(loader->make_device(5, {}).error().what, "there is no GPU 5; the driver shows 2"));
}

TEST_CASE("on a machine without a driver every GPU is refused with the driver's sentence") {
  const auto loader = GpuLoader::open(only("no_driver.so"));
  REQUIRE(loader.ok());
  CHECK(loader->first_usable().error().what == "there is no driver");
  CHECK(loader->make_device(0, {}).error().hint == "install it");
}

TEST_CASE("the plugin is looked for beside the program and in the install tree's lib") {
  ::setenv("FASTSERVE_CUDA_PLUGIN", "/somewhere/else.so", 1);
  CHECK(GpuSearch::standard().plugin == "/somewhere/else.so");
  ::unsetenv("FASTSERVE_CUDA_PLUGIN");
  const GpuSearch search = GpuSearch::standard();
  CHECK(search.plugin.empty());
  const Path folder = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  REQUIRE(search.folders.size() == 3);
  CHECK(search.folders[0] == folder);
  CHECK(search.folders[1] == folder.parent_path() / "lib");
}
