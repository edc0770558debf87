#include "api/connection_threads.h"

#include <fmt/format.h>

#include <atomic>
#include <system_error>

namespace fastserve {

struct ConnectionThreads::Running {
  explicit Running(const Stream& stream) : cut(stream) {}
  ~Running() {
    if (thread.joinable()) thread.join();
  }
  const StreamCut cut;
  std::atomic<bool> ended{false};
  std::thread thread;
};

ConnectionThreads::ConnectionThreads(size_t most, std::string what)
    : most_(most), what_(std::move(what)) {}

ConnectionThreads::~ConnectionThreads() {
  closing_.raise();
  const std::lock_guard lock(mutex_);
  for (const auto& running : running_) running->cut.cut();
  running_.clear();
}

void ConnectionThreads::reap() {
  std::erase_if(running_, [](const auto& running) { return running->ended.load(); });
}

Status ConnectionThreads::start(TlsConnection& connection, Serve serve) {
  const std::lock_guard lock(mutex_);
  reap();
  if (running_.size() >= most_)
    return Error{ErrorCode::kUnavailable, fmt::format("has {} {} already", most_, what_),
                 "this coordinator", "try again in a while"};
  auto running = std::make_unique<Running>(*connection.stream);
  const auto held = std::make_shared<TlsConnection>(std::move(connection));
  try {
    running->thread = std::thread([this, held, serve = std::move(serve), now = running.get()] {
      serve(std::move(*held), closing_);
      now->cut.cut();  // it holds the connection open
      now->ended = true;
    });
  } catch (const std::system_error& error) {
    connection = std::move(*held);
    return Error{ErrorCode::kUnavailable, std::string("cannot start a thread: ") + error.what(),
                 "this coordinator", "allow this process more threads (ulimit -u)"};
  }
  running_.push_back(std::move(running));
  return {};
}

}  // namespace fastserve
