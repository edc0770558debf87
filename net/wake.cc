#include "net/wake.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace fastserve {

Result<Wake> Wake::create() {
  const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd >= 0) return Wake(Socket(fd));
  return Error{ErrorCode::kResourceExhausted,
               std::string("cannot make an eventfd: ") + std::strerror(errno), "",
               "allow this process more open files (ulimit -n)"};
}

void Wake::notify() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the thread is woken anyway.
  [[maybe_unused]] const ssize_t written = ::write(fd_.get(), &one, sizeof one);
}

void Wake::clear() {
  uint64_t count;
  [[maybe_unused]] const ssize_t got = ::read(fd_.get(), &count, sizeof count);
}

}  // namespace fastserve
