// A folder that goes with the test, and a disk that is full.
#pragma once

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "base/file.h"

namespace fastserve {

struct Folder {
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "fastserve-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  Path path;
};

/// No file of this process may grow beyond `most`.
struct FullDisk {
  explicit FullDisk(rlim_t most) {
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
    limit = {most, before.rlim_max};
    handler = std::signal(SIGXFSZ, SIG_IGN);
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  }
  ~FullDisk() {
    ::setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, handler);
  }
  rlimit before{}, limit{};
  void (*handler)(int) = SIG_DFL;
};

}  // namespace fastserve
