#include "rpc/event_loop.h"

#include <pthread.h>

#include <csignal>
#include <mutex>

namespace fastserve {

kj::AsyncIoContext set_up_event_loop() {
  // Two loops set up at once would each take the other's moment for the host's choice.
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  sigset_t broken_pipe;
  sigemptyset(&broken_pipe);
  sigaddset(&broken_pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &broken_pipe, nullptr);
  struct sigaction chosen {};
  sigaction(SIGPIPE, nullptr, &chosen);
  auto io = kj::setupAsyncIo();
  sigaction(SIGPIPE, &chosen, nullptr);
  return io;
}

}  // namespace fastserve
