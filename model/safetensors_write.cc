#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/json.h"
#include "model/safetensors.h"

namespace fastserve {
namespace {

/// A new file that becomes `path` on publish(), and vanishes otherwise.
class PendingFile {
 public:
  static Result<std::unique_ptr<PendingFile>> create(const Path& path) {
    std::unique_ptr<PendingFile> file(new PendingFile(path));
    file->fd_ = ::open(file->pending_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file->fd_ < 0) return errno_error("cannot create", file->pending_);
    return file;
  }
  ~PendingFile() {
    if (fd_ < 0) return;
    ::close(fd_);
    ::unlink(pending_.c_str());
  }

  Status write(const void* data, size_t size) {
    constexpr size_t kChunk = size_t{64} << 20;
    const auto* bytes = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t n = ::write(fd_, bytes, std::min(size, kChunk));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return errno_error("cannot write", pending_);
      bytes += n;
      size -= static_cast<size_t>(n);
    }
    return {};
  }

  Status publish() {
    if (::fdatasync(fd_) != 0) return errno_error("cannot sync", pending_);
    if (::rename(pending_.c_str(), path_.c_str()) != 0)
      return errno_error("cannot rename into", path_);
    ::close(std::exchange(fd_, -1));
    return sync_directory(path_.parent_path());
  }

 private:
  explicit PendingFile(const Path& path) : path_(path), pending_(path.string() + ".tmp") {}
  Path path_, pending_;
  int fd_ = -1;
};

/// The header, padded so that the data begins on a multiple of 8 bytes.
std::string header_text(const std::vector<std::pair<std::string, TensorView>>& views,
                        const std::map<std::string, std::string>& metadata) {
  Json::Object header;
  if (!metadata.empty()) {
    Json::Object pairs;
    for (const auto& [key, value] : metadata) pairs.emplace_back(key, value);
    header.emplace_back("__metadata__", std::move(pairs));
  }
  uint64_t offset = 0;
  for (const auto& [name, view] : views) {
    const uint64_t end = offset + view.bytes.size();
    header.emplace_back(name, Json::object({{"dtype", dtype_name(view.dtype)},
                                            {"shape", Json::array_of(view.shape)},
                                            {"data_offsets", Json(Json::Array{offset, end})}}));
    offset = end;
  }
  std::string text = Json(std::move(header)).dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

}  // namespace

Status write_safetensors(const Path& path, const TensorSource& tensors,
                         const std::map<std::string, std::string>& metadata) {
  std::vector<std::pair<std::string, TensorView>> views;
  uint64_t bytes = 0;
  for (std::string& name : tensors.names()) {
    FS_ASSIGN(TensorView view, tensors.tensor(name));
    bytes += view.bytes.size();
    views.emplace_back(std::move(name), std::move(view));
  }
  const std::string header = header_text(views, metadata);
  const uint64_t length = header.size();
  FS_TRY(require_free_space(path.parent_path().empty() ? Path(".") : path.parent_path(),
                            bytes + length));
  FS_ASSIGN(std::unique_ptr<PendingFile> file, PendingFile::create(path));
  FS_TRY(file->write(&length, sizeof length));
  FS_TRY(file->write(header.data(), header.size()));
  for (const auto& [name, view] : views) FS_TRY(file->write(view.bytes.data(), view.bytes.size()));
  return file->publish();
}

}  // namespace fastserve
