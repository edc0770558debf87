#include "store/reserve.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

namespace fastserve {
namespace {

constexpr uint64_t kReserve = uint64_t{4} << 20;
constexpr uint64_t kToOpen = uint64_t{1} << 20;
constexpr uint64_t kPlenty = uint64_t{64} << 20;

}  // namespace

Status spend_reserve(const Path& root) {
  FS_ASSIGN(uint64_t free, free_space(root));
  if (free >= kToOpen) return {};
  ::unlink((root / "reserve").c_str());
  FS_ASSIGN(free, free_space(root));
  if (free >= kToOpen) return {};
  return Error{ErrorCode::kResourceExhausted,
               fmt::format("its disk is full: {} are free, and opening it takes {}",
                           human_bytes(free), human_bytes(kToOpen)),
               root.string(), "free some space on that disk"};
}

void keep_reserve(const Path& root) {
  const Path path = root / "reserve";
  std::error_code error;
  if (std::filesystem::exists(path, error)) return;
  const Result<uint64_t> free = free_space(root);
  if (!free.ok() || *free < kPlenty) return;
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return;
  const bool claimed = ::fallocate(fd, 0, 0, static_cast<off_t>(kReserve)) == 0;
  ::close(fd);
  if (!claimed) ::unlink(path.c_str());
}

}  // namespace fastserve
