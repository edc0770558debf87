#include "rpc/server.h"

#include <future>
#include <thread>

#include "rpc/event_loop.h"
#include "rpc/server_loop.h"

namespace fastserve {
namespace {

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

class RunningServer final : public RpcServer {
 public:
  RunningServer(RpcServerOptions options, std::shared_ptr<GenerateService> service, BoundPort bound)
      : options_(std::move(options)),
        service_(std::move(service)),
        port_(bound.port),
        endpoint_(std::move(bound.endpoint)) {
    std::promise<void> started;
    const std::future<void> ready = started.get_future();
    thread_ = std::thread(
        [this, socket = std::move(bound.socket), started = std::move(started)]() mutable {
          run(std::move(socket), std::move(started));
        });
    ready.wait();
  }
  ~RunningServer() override {
    mailbox_->post([this] { stop_->fulfill(); });
    thread_.join();
  }
  int port() const override { return port_; }
  std::string endpoint() const override { return endpoint_; }
  size_t connections() const override { return connections_; }
  void adopt(std::unique_ptr<Stream> stream) override {
    const auto handed = std::make_shared<std::unique_ptr<Stream>>(std::move(stream));
    mailbox_->post([this, handed] { loop_->adopt(std::move(*handed)); });
  }

 private:
  void run(Socket socket, std::promise<void> started) {
    LoopLog loop_log(options_.log);
    auto io = set_up_event_loop();
    io.waitScope.setBusyPollInterval(64);  // turns between two looks at the sockets
    auto stop = kj::newPromiseAndFulfiller<void>();
    stop_ = stop.fulfiller.get();
    {
      ServerLoop loop(options_, *service_, mailbox_, connections_, io);
      loop_ = &loop;
      started.set_value();
      loop.run(io, std::move(socket), kj::mv(stop.promise));
    }
    mailbox_->close();
  }

  const RpcServerOptions options_;
  const std::shared_ptr<GenerateService> service_;
  const int port_;
  const std::string endpoint_;
  const std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
  std::atomic<size_t> connections_{0};
  ServerLoop* loop_ = nullptr;                  // the thread's, as is stop_
  kj::PromiseFulfiller<void>* stop_ = nullptr;  // both set before the constructor returns
  std::thread thread_;
};

}  // namespace

Result<BoundPort> RpcServer::bind(const RpcServerOptions& options) {
  return bind_to(options.address, options.port, options.allow_remote);
}

Result<std::unique_ptr<RpcServer>> RpcServer::start(RpcServerOptions options,
                                                    std::shared_ptr<GenerateService> service,
                                                    BoundPort port) {
  FS_CHECK(service != nullptr);
  FS_TRY(listen_at(port));
  return std::unique_ptr<RpcServer>(
      std::make_unique<RunningServer>(std::move(options), std::move(service), std::move(port)));
}

std::unique_ptr<RpcServer> RpcServer::without_port(RpcServerOptions options,
                                                   std::shared_ptr<GenerateService> service) {
  FS_CHECK(service != nullptr);
  return std::make_unique<RunningServer>(std::move(options), std::move(service), BoundPort());
}

Result<std::unique_ptr<RpcServer>> RpcServer::start(RpcServerOptions options,
                                                    std::shared_ptr<GenerateService> service) {
  FS_ASSIGN(BoundPort port, bind(options));
  return start(std::move(options), std::move(service), std::move(port));
}

}  // namespace fastserve
