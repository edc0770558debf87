#include "store/extent_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "store/records.h"

namespace fastserve {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kSmallAlignment = 64;  // what kernels like; pieces of a page or more get pages
constexpr size_t kWriteBytes = size_t{8} << 20;

}  // namespace

Path extent_path(const Path& root, const Hash128& hash) { return root / "extents" / hash.hex(); }

ExtentWriter::~ExtentWriter() {
  if (group_) ::close(group_->fd);
  if (moved_) return;
  // One more than is known: a file that could not be closed well is not in extents_.
  for (size_t i = 0; i <= extents_.size(); i++) ::unlink(temporary(i).c_str());
}

Path ExtentWriter::temporary(size_t index) const {
  return root_ / "tmp" / (label_ + "-" + std::to_string(index));
}

Path ExtentWriter::final_path(const Extent& extent) const {
  return extent_path(root_, extent.hash);
}

Result<std::unique_ptr<ExtentWriter::OpenFile>> ExtentWriter::create(uint64_t likely_bytes) {
  auto file = std::make_unique<OpenFile>();
  file->index = extents_.size();
  extents_.emplace_back();
  const Path path = temporary(file->index);
  file->fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file->fd < 0) return errno_error("cannot create", path);
  if (likely_bytes > 0 && ::fallocate(file->fd, 0, 0, static_cast<off_t>(likely_bytes)) != 0 &&
      errno != EOPNOTSUPP) {
    Error error = errno_error("cannot claim " + human_bytes(likely_bytes), path);
    ::close(file->fd);
    return error;
  }
  return file;
}

Status ExtentWriter::write(OpenFile& file, std::span<const std::byte> bytes) {
  file.hasher.update(bytes);
  file.size += bytes.size();
  while (!bytes.empty()) {
    const ssize_t n = ::write(file.fd, bytes.data(), std::min(bytes.size(), kWriteBytes));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error("cannot write", temporary(file.index));
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return {};
}

Status ExtentWriter::close(std::unique_ptr<OpenFile> file) {
  const Path path = temporary(file->index);
  Status closed;
  if (::ftruncate(file->fd, static_cast<off_t>(file->size)) != 0)
    closed = errno_error("cannot trim", path);
  else if (::fdatasync(file->fd) != 0)
    closed = errno_error("cannot sync", path);
  ::close(file->fd);
  extents_[file->index] = {file->hasher.digest(), file->size};
  return closed;
}

Result<ExtentWriter::Place> ExtentWriter::append(std::span<const std::byte> piece) {
  if (!group_) {
    FS_ASSIGN(group_, create(std::min(expected_, kPieceBytes)));
  }
  const uint64_t alignment = piece.size() >= kPage ? kPage : kSmallAlignment;
  const std::vector<std::byte> padding((alignment - group_->size % alignment) % alignment);
  FS_TRY(write(*group_, padding));
  const Place place{group_->index, group_->size};
  FS_TRY(write(*group_, piece));
  expected_ -= std::min<uint64_t>(expected_, piece.size());
  if (group_->size >= kPieceBytes) FS_TRY(close(std::move(group_)));
  return place;
}

Result<ExtentWriter::Place> ExtentWriter::append_alone(std::span<const std::byte> piece) {
  FS_ASSIGN(auto file, create(piece.size()));
  const Place place{file->index, 0};
  const Status written = write(*file, piece);
  expected_ -= std::min<uint64_t>(expected_, piece.size());
  const Status closed = close(std::move(file));
  if (!written.ok()) return written.error();
  if (!closed.ok()) return closed.error();
  return place;
}

Status ExtentWriter::finish() {
  if (group_) FS_TRY(close(std::move(group_)));
  moved_ = true;
  for (size_t i = 0; i < extents_.size(); i++) {
    if (::rename(temporary(i).c_str(), final_path(extents_[i]).c_str()) == 0) continue;
    Error error = errno_error("cannot move into place", temporary(i));
    for (size_t rest = i; rest < extents_.size(); rest++) ::unlink(temporary(rest).c_str());
    undo();
    return error;
  }
  if (extents_.empty()) return {};
  const Status synced = sync_directory(root_ / "extents");
  if (!synced.ok()) undo();
  return synced;
}

void ExtentWriter::undo() {
  for (const Extent& extent : extents_) ::unlink(final_path(extent).c_str());
}

}  // namespace fastserve
