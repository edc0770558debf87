#include "api/private_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/fd.h"

namespace fastserve {

Status write_private_file(const Path& path, std::string_view bytes) {
  const Path fresh = path.string() + ".tmp";
  ::unlink(fresh.c_str());  // one that a crash left may have been made by another umask
  {
    Fd fd(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (fd.get() < 0) return errno_error("cannot create", fresh);
    Status written;
    while (!bytes.empty() && written.ok()) {
      const ssize_t n = ::write(fd.get(), bytes.data(), bytes.size());
      if (n >= 0)
        bytes.remove_prefix(static_cast<size_t>(n));
      else if (errno != EINTR)
        written = errno_error("cannot write", fresh);
    }
    if (written.ok() && ::fdatasync(fd.get()) != 0) written = errno_error("cannot sync", fresh);
    if (!written.ok()) {
      ::unlink(fresh.c_str());
      return written;
    }
  }
  if (::rename(fresh.c_str(), path.c_str()) != 0) return errno_error("cannot rename into", path);
  return sync_directory(path.parent_path());
}

Status make_private_folder(const Path& path) {
  FS_TRY(make_directories(path.parent_path()));
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
    return errno_error("cannot create the folder", path);
  return {};
}

}  // namespace fastserve
