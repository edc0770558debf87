// Work handed from any thread to a thread that runs a KJ event loop.
#pragma once

#include <kj/async-unix.h>

#include <functional>
#include <mutex>
#include <vector>

namespace fastserve {

/// A queue of tasks that one loop thread runs in order.
///
/// Owns:     an eventfd.
/// Threads:  post() and close() from any thread; run() on the loop's.
/// Promises: a post costs a lock and, when the queue was empty, one write; the loop wakes once for
///           all that came meanwhile. Never blocks.
/// Refuses:  tasks after close(): they are dropped.
class Mailbox {
 public:
  using Task = std::function<void()>;

  Mailbox();
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  void post(Task task);
  /// Drops what waits and what comes; the tasks' captures are destroyed by the caller.
  void close();
  /// Runs tasks until the promise is dropped.
  kj::Promise<void> run(kj::UnixEventPort& port);

 private:
  kj::Promise<void> next();

  const int wake_;
  std::mutex mutex_;
  std::vector<Task> tasks_;  // guarded by mutex_
  bool closed_ = false;      // guarded by mutex_
  kj::Own<kj::UnixEventPort::FdObserver> readable_;
};

}  // namespace fastserve
