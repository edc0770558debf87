// Preloaded into a process, makes its machine worse:
//   MACHINE_SKEW=SECONDS       its wall clock is that much ahead (or behind: -SECONDS)
//   MACHINE_SLOW=PATH:SECONDS  the disk takes that long for each file whose path contains PATH
#include <dlfcn.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>

namespace {

time_t skew() {
  const char* text = std::getenv("MACHINE_SKEW");
  return text == nullptr ? 0 : std::atol(text);
}

void take_time(int fd) {
  const char* slow = std::getenv("MACHINE_SLOW");
  const char* colon = slow == nullptr ? nullptr : std::strrchr(slow, ':');
  if (colon == nullptr) return;
  char path[4096];
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t n = ::readlink(link.c_str(), path, sizeof path);
  if (n > 0 &&
      std::string(path, static_cast<size_t>(n)).find(std::string(slow, colon)) != std::string::npos)
    ::sleep(static_cast<unsigned>(std::atoi(colon + 1)));
}

template <class F>
F next(const char* name) {
  return reinterpret_cast<F>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec* at) noexcept {
  static const auto real = next<int (*)(clockid_t, timespec*)>("clock_gettime");
  const int code = real(clock, at);
  if (clock == CLOCK_REALTIME) at->tv_sec += skew();
  return code;
}

time_t time(time_t* out) noexcept {
  timespec at;
  clock_gettime(CLOCK_REALTIME, &at);
  if (out != nullptr) *out = at.tv_sec;
  return at.tv_sec;
}

int gettimeofday(timeval* out, void*) noexcept {
  timespec at;
  clock_gettime(CLOCK_REALTIME, &at);
  out->tv_sec = at.tv_sec;
  out->tv_usec = at.tv_nsec / 1000;
  return 0;
}

int fdatasync(int fd) {
  static const auto real = next<int (*)(int)>("fdatasync");
  take_time(fd);
  return real(fd);
}

int fsync(int fd) {
  static const auto real = next<int (*)(int)>("fsync");
  take_time(fd);
  return real(fd);
}
}
