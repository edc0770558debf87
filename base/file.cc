#include "base/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/fd.h"

namespace fastserve {
namespace {

Status write_all(int fd, std::string_view bytes, const Path& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error("cannot write", path);
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}

}  // namespace

Error errno_error(std::string_view what, const Path& path) {
  const int error = errno;
  ErrorCode code = ErrorCode::kIo;
  std::string hint;
  if (error == ENOENT) code = ErrorCode::kNotFound, hint = "check the path";
  if (error == EACCES || error == EPERM) hint = "check the permissions";
  if (error == ENOSPC || error == EDQUOT)
    code = ErrorCode::kResourceExhausted, hint = "free some space or choose another disk";
  if (error == ENOMEM) code = ErrorCode::kResourceExhausted;
  return {code, fmt::format("{}: {}", what, std::strerror(error)), path.string(), hint};
}

Result<std::string> read_file(const Path& path, uint64_t limit) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return errno_error("cannot open", path);
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return errno_error("cannot stat", path);
  if (S_ISDIR(st.st_mode))
    return Error{ErrorCode::kInvalidArgument, "is a directory, not a file", path.string(), ""};
  std::string bytes;
  if (st.st_size > 0) bytes.reserve(std::min<uint64_t>(limit, static_cast<uint64_t>(st.st_size)));
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error("cannot read", path);
    if (n == 0) return bytes;
    bytes.append(buffer, static_cast<size_t>(n));
    if (bytes.size() > limit)
      return Error{ErrorCode::kResourceExhausted,
                   fmt::format("is larger than the limit of {}", human_bytes(limit)),
                   path.string(), ""};
  }
}

Status write_file_atomically(const Path& path, std::string_view bytes) {
  const Path tmp = path.string() + ".tmp";
  {
    Fd fd(::open(tmp.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (fd.get() < 0) return errno_error("cannot create", tmp);
    Status written = write_all(fd.get(), bytes, tmp);
    if (written.ok() && ::fdatasync(fd.get()) != 0) written = errno_error("cannot sync", tmp);
    if (!written.ok()) {
      ::unlink(tmp.c_str());
      return written;
    }
  }
  if (::rename(tmp.c_str(), path.c_str()) != 0) return errno_error("cannot rename into", path);
  return sync_directory(path.parent_path());
}

Status make_directories(const Path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error) return {};
  errno = error.value();
  return errno_error("cannot create the folder", path);
}

Status sync_directory(const Path& path) {
  const Path folder = path.empty() ? Path(".") : path;
  Fd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) return errno_error("cannot open", folder);
  if (::fsync(fd.get()) != 0) return errno_error("cannot sync", folder);
  return {};
}

Result<uint64_t> free_space(const Path& path) {
  struct statvfs st {};
  if (::statvfs(path.c_str(), &st) != 0) return errno_error("cannot ask for free space", path);
  return uint64_t{st.f_bavail} * st.f_frsize;
}

Status require_free_space(const Path& path, uint64_t bytes) {
  constexpr uint64_t kSlack = uint64_t{64} << 20;
  FS_ASSIGN(const uint64_t free, free_space(path));
  if (free >= bytes + kSlack) return {};
  return Error{ErrorCode::kResourceExhausted,
               fmt::format("{} are needed and {} are free", human_bytes(bytes + kSlack),
                           human_bytes(free)),
               path.string(), "free some space or choose another disk"};
}

std::string human_bytes(uint64_t bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double amount = static_cast<double>(bytes);
  int unit = 0;
  while (amount >= 1024 && unit < 5) amount /= 1024, unit++;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", amount, units[unit]);
}

Result<MappedFile> MappedFile::open(const Path& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return errno_error("cannot open", path);
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return errno_error("cannot stat", path);
  if (!S_ISREG(st.st_mode))
    return Error{ErrorCode::kInvalidArgument, "is not a regular file", path.string(), ""};
  const size_t size = static_cast<size_t>(st.st_size);
  if (size == 0) return MappedFile(nullptr, 0);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) return errno_error("cannot map", path);
  return MappedFile(static_cast<const std::byte*>(data), size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

Result<FileLock> FileLock::acquire(const Path& path) {
  Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (fd.get() < 0) return errno_error("cannot open the lock", path);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    char holder[32] = {};
    const ssize_t n = ::pread(fd.get(), holder, sizeof holder - 1, 0);
    return Error{ErrorCode::kUnavailable,
                 fmt::format("is in use by process {}", n > 0 ? holder : "(unknown)"),
                 path.parent_path().string(), "stop that process, or use another --store"};
  }
  const std::string pid = std::to_string(::getpid());
  if (::ftruncate(fd.get(), 0) != 0 || ::pwrite(fd.get(), pid.data(), pid.size(), 0) < 0)
    return errno_error("cannot write the lock", path);
  return FileLock(fd.release());
}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);  // closing drops the lock
}

}  // namespace fastserve
