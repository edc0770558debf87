#include "rpc/cluster_server.h"

#include <future>
#include <thread>

#include "rpc/cluster_loop.h"
#include "rpc/event_loop.h"

namespace fastserve {
namespace {

constexpr size_t kMostWaiting = 1024;  // calls that no thread has taken up

/// KJ's own log lines, which would otherwise go to standard error.
class LoopLog final : public kj::ExceptionCallback {
 public:
  explicit LoopLog(const Log& log) : log_(log) {}
  void logMessage(kj::LogSeverity, const char*, int, int, kj::String&& text) override {
    log_.debug({text.begin(), text.size()});
  }

 private:
  const Log& log_;
};

class RunningClusterServer final : public ClusterServer {
 public:
  RunningClusterServer(ClusterControl& control, CheckToken check_token,
                       ClusterServerOptions options)
      : service_{control, std::move(check_token), std::move(options)},
        pool_(service_.options.threads, kMostWaiting) {
    std::promise<void> started;
    const std::future<void> ready = started.get_future();
    thread_ = std::thread([this, started = std::move(started)]() mutable { run(started); });
    ready.wait();
  }
  ~RunningClusterServer() override {
    service_.mailbox->post([this] { stop_->fulfill(); });
    thread_.join();
  }

  void adopt(std::unique_ptr<Stream> stream) override {
    const auto handed = std::make_shared<std::unique_ptr<Stream>>(std::move(stream));
    service_.mailbox->post([this, handed] { loop_->adopt(std::move(*handed)); });
  }
  size_t connections() const override { return service_.connections; }

 private:
  void run(std::promise<void>& started) {
    const LoopLog loop_log(service_.options.log);
    auto io = set_up_event_loop();
    auto stop = kj::newPromiseAndFulfiller<void>();
    stop_ = stop.fulfiller.get();
    {
      ClusterLoop loop(service_, pool_, io);
      loop_ = &loop;
      started.set_value();
      loop.run(io, kj::mv(stop.promise));
    }
    service_.mailbox->close();
  }

  ClusterService service_;
  CallPool pool_;                // joined while the service is there
  ClusterLoop* loop_ = nullptr;  // the thread's, as is stop_
  kj::PromiseFulfiller<void>* stop_ = nullptr;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<ClusterServer> ClusterServer::start(ClusterControl& control, CheckToken check_token,
                                                    ClusterServerOptions options) {
  FS_CHECK(check_token != nullptr);
  return std::make_unique<RunningClusterServer>(control, std::move(check_token),
                                                std::move(options));
}

}  // namespace fastserve
