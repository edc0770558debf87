#include "rpc/mailbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "base/check.h"

namespace fastserve {

Mailbox::Mailbox() : wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) { FS_CHECK(wake_ >= 0); }

Mailbox::~Mailbox() { ::close(wake_); }

void Mailbox::post(Task task) {
  const std::lock_guard lock(mutex_);
  if (closed_) return;
  tasks_.push_back(std::move(task));
  if (tasks_.size() > 1) return;  // the loop has been woken and not been here yet
  const uint64_t one = 1;
  FS_CHECK(::write(wake_, &one, sizeof one) == sizeof one);
}

void Mailbox::close() {
  std::vector<Task> dropped;
  const std::lock_guard lock(mutex_);
  closed_ = true;
  dropped.swap(tasks_);
}

kj::Promise<void> Mailbox::run(kj::UnixEventPort& port) {
  readable_ = kj::heap<kj::UnixEventPort::FdObserver>(port, wake_,
                                                      kj::UnixEventPort::FdObserver::OBSERVE_READ);
  return next().attach(kj::defer([this] { readable_ = nullptr; }));
}

kj::Promise<void> Mailbox::next() {
  return readable_->whenBecomesReadable().then([this]() {
    uint64_t count = 0;
    (void)!::read(wake_, &count, sizeof count);
    std::vector<Task> tasks;
    {
      const std::lock_guard lock(mutex_);
      tasks.swap(tasks_);
    }
    for (Task& task : tasks) task();
    return next();
  });
}

}  // namespace fastserve
