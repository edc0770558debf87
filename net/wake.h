// Wakes a thread that sleeps in poll(). For net/ alone.
#pragma once

#include "base/result.h"
#include "net/socket.h"

namespace fastserve {

/// Owns:    an eventfd.
/// Threads: notify() from any; the rest from the one that sleeps.
class Wake {
 public:
  /// kResourceExhausted when descriptors are out.
  static Result<Wake> create();
  void notify();
  void clear();
  int fd() const { return fd_.get(); }

 private:
  explicit Wake(Socket fd) : fd_(std::move(fd)) {}
  Socket fd_;
};

}  // namespace fastserve
