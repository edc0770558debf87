// Files: whole reads with a limit, writes that are either complete or absent, maps and locks.
// Every errno becomes an Error here, naming the path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"

namespace fastserve {

using Path = std::filesystem::path;

/// The whole file. kNotFound, kIo, or kResourceExhausted when it is larger than `limit` bytes.
Result<std::string> read_file(const Path& path, uint64_t limit = uint64_t{1} << 30);

/// Writes path + ".tmp", syncs it, renames it over `path`, syncs the folder: after a crash the file
/// holds either the old bytes or the new ones.
Status write_file_atomically(const Path& path, std::string_view bytes);

Status make_directories(const Path& path);
Status sync_directory(const Path& path);

/// Bytes that an unprivileged process may still write below `path`.
Result<uint64_t> free_space(const Path& path);

/// kResourceExhausted with the figures when fewer than `bytes` (plus 64 MiB of slack) are free.
Status require_free_space(const Path& path, uint64_t bytes);

/// "1.5 GiB"
std::string human_bytes(uint64_t bytes);

/// Error for the current errno: "`what`: No space left on device", in `path`.
Error errno_error(std::string_view what, const Path& path);

/// A read-only memory map of a whole file. Move-only.
class MappedFile {
 public:
  static Result<MappedFile> open(const Path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  MappedFile(const std::byte* data, size_t size) : data_(data), size_(size) {}
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// An exclusive advisory lock on `path` (created when absent), held until destruction or process
/// death. kUnavailable names the holder's pid when another process has it.
class FileLock {
 public:
  static Result<FileLock> acquire(const Path& path);
  FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileLock& operator=(FileLock&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileLock();

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_ = -1;
};

}  // namespace fastserve
