#include "rpc/server.h"

#include <capnp/rpc-twoparty.h>
#include <fmt/format.h>
#include <kj/async-io.h>
#include <kj/debug.h>

#include <atomic>
#include <future>
#include <map>
#include <optional>
#include <thread>

#include "rpc/mailbox.h"
#include "rpc/messages.h"
#include "rpc/request_stream.h"
#include "rpc/socket.h"
#include "rpc/watched_stream.h"

namespace fastserve {
namespace {

constexpr uint16_t kProtocol = wire::PROTOCOL;
constexpr uint16_t kOldestProtocol = 1;
constexpr const char* kServerName = "fastserve " FASTSERVE_VERSION;

constexpr capnp::ReaderOptions kReaderOptions{(uint64_t{4} << 20) / sizeof(capnp::word), 16};

kj::Duration to_kj(Nanoseconds time) { return time.count() * kj::NANOSECONDS; }

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

class ServerLoop;

/// What the calls of one connection share.
struct Connection {
  Connection(kj::Own<kj::AsyncIoStream> inner, kj::Timer& timer)
      : opened(timer.now()),
        stream(kj::mv(inner), timer),
        network(stream, capnp::rpc::twoparty::Side::SERVER, kReaderOptions) {}

  kj::TimePoint opened;
  bool greeted = false;  // it made a call
  WatchedStream stream;
  capnp::TwoPartyVatNetwork network;
  kj::Maybe<capnp::RpcSystem<capnp::rpc::twoparty::VatId>> rpc;
  kj::Promise<void> disconnected = nullptr;
};

/// Everything that runs on the loop's thread.
class ServerLoop final : private kj::TaskSet::ErrorHandler {
 public:
  ServerLoop(const RpcServerOptions& options, GenerateService& service,
             std::shared_ptr<Mailbox> mailbox, std::atomic<size_t>& connection_count,
             kj::AsyncIoContext& io)
      : options_(options),
        service_(service),
        mailbox_(std::move(mailbox)),
        connection_count_(connection_count),
        timer_(io.provider->getTimer()),
        tasks_(*this) {}
  ~ServerLoop() {
    while (!connections_.empty()) close(connections_.begin()->first);
  }

  void run(kj::AsyncIoContext& io, Socket listening, kj::Promise<void> stop) {
    receiver_ = io.lowLevelProvider->wrapListenSocketFd(
        kj::AutoCloseFd(listening.release()), kj::LowLevelAsyncIoProvider::ALREADY_CLOEXEC |
                                                  kj::LowLevelAsyncIoProvider::ALREADY_NONBLOCK);
    tasks_.add(accept());
    tasks_.add(watch_silence());
    tasks_.add(mailbox_->run(io.unixEventPort));
    stop.wait(io.waitScope);
  }

  /// Queues a request for the connection; its events go to the sink.
  struct Started {
    uint64_t key;
    RequestId request;
  };
  Result<Started> start(uint64_t connection, GenerateRequest request, wire::EventSink::Client sink);
  void cancel(uint64_t stream);

  GenerateService& service() { return service_; }
  void greet(uint64_t connection) { connections_.at(connection)->greeted = true; }

 private:
  void taskFailed(kj::Exception&& exception) override {
    options_.log.warning(std::string("rpc: ") + exception.getDescription().cStr());
  }

  kj::Promise<void> accept();
  void add(kj::Own<kj::AsyncIoStream> stream);
  void close(uint64_t connection);
  kj::Promise<void> watch_silence();
  bool silent_for_too_long(uint64_t id, Connection& connection) const;
  size_t requests_of(uint64_t connection) const;
  void deliver(uint64_t key, std::vector<GenerateEvent> events);

  struct Running {
    uint64_t connection;
    RequestId request;
    kj::Own<RequestStream> stream;
  };

  const RpcServerOptions& options_;
  GenerateService& service_;
  const std::shared_ptr<Mailbox> mailbox_;
  std::atomic<size_t>& connection_count_;
  kj::Timer& timer_;
  kj::Own<kj::ConnectionReceiver> receiver_;
  uint64_t next_key_ = 1;
  std::map<uint64_t, kj::Own<Connection>> connections_;
  std::map<uint64_t, Running> running_;
  kj::TaskSet tasks_;
};

class GenerationServer final : public wire::Generation::Server {
 public:
  GenerationServer(ServerLoop& loop, uint64_t stream) : loop_(loop), stream_(stream) {}
  ~GenerationServer() { loop_.cancel(stream_); }
  kj::Promise<void> cancel(CancelContext) override {
    loop_.cancel(stream_);
    return kj::READY_NOW;
  }

 private:
  ServerLoop& loop_;
  const uint64_t stream_;
};

/// The bootstrap capability of one connection.
class FastServeServer final : public wire::FastServe::Server {
 public:
  FastServeServer(ServerLoop& loop, uint64_t connection) : loop_(loop), connection_(connection) {}

  kj::Promise<void> hello(HelloContext context) override {
    loop_.greet(connection_);
    auto results = context.getResults();
    results.setProtocol(kProtocol);
    results.setOldestProtocol(kOldestProtocol);
    results.setServer(kServerName);
    return kj::READY_NOW;
  }

  kj::Promise<void> listModels(ListModelsContext context) override {
    loop_.greet(connection_);
    const auto models = loop_.service().models();
    auto list = context.getResults().initModels(static_cast<unsigned>(models.size()));
    for (unsigned i = 0; i < models.size(); i++) write_model(list[i], models[i]);
    return kj::READY_NOW;
  }

  kj::Promise<void> health(HealthContext context) override {
    loop_.greet(connection_);
    write_health(context.getResults().initHealth(), loop_.service().health());
    return kj::READY_NOW;
  }

  kj::Promise<void> generate(GenerateContext context) override {
    loop_.greet(connection_);
    const auto params = context.getParams();
    auto results = context.getResults();
    if (!params.hasSink()) {
      write_error(results.initError(), {ErrorCode::kInvalidArgument, "is missing", "sink",
                                        "pass an EventSink to receive the tokens"});
      return kj::READY_NOW;
    }
    const auto started =
        loop_.start(connection_, read_request(params.getRequest()), params.getSink());
    if (!started.ok()) {
      write_error(results.initError(), started.error());
      return kj::READY_NOW;
    }
    results.setRequestId(started->request.value);
    results.setGeneration(kj::heap<GenerationServer>(loop_, started->key));
    return kj::READY_NOW;
  }

  kj::Promise<void> tokenise(TokeniseContext context) override {
    loop_.greet(connection_);
    const auto params = context.getParams();
    const auto tokens = loop_.service().tokenise(
        to_string(params.getModel()), to_string(params.getText()), params.getAddSpecialTokens());
    auto results = context.getResults();
    if (!tokens.ok()) {
      write_error(results.initError(), tokens.error());
      return kj::READY_NOW;
    }
    auto list = results.initTokens(static_cast<unsigned>(tokens->size()));
    for (unsigned i = 0; i < tokens->size(); i++) list.set(i, (*tokens)[i]);
    return kj::READY_NOW;
  }

  kj::Promise<void> detokenise(DetokeniseContext context) override {
    loop_.greet(connection_);
    const auto params = context.getParams();
    std::vector<int32_t> tokens;
    for (const int32_t token : params.getTokens()) tokens.push_back(token);
    const auto text = loop_.service().detokenise(to_string(params.getModel()), tokens);
    if (text.ok())
      context.getResults().setText(to_text(*text));
    else
      write_error(context.getResults().initError(), text.error());
    return kj::READY_NOW;
  }

  kj::Promise<void> formatChat(FormatChatContext context) override {
    loop_.greet(connection_);
    const auto params = context.getParams();
    std::vector<std::pair<std::string, std::string>> messages;
    for (const auto message : params.getMessages())
      messages.emplace_back(to_string(message.getRole()), to_string(message.getContent()));
    const auto prompt = loop_.service().format_chat(to_string(params.getModel()), messages);
    if (prompt.ok())
      context.getResults().setPrompt(to_text(*prompt));
    else
      write_error(context.getResults().initError(), prompt.error());
    return kj::READY_NOW;
  }

 private:
  ServerLoop& loop_;
  const uint64_t connection_;
};

kj::Promise<void> ServerLoop::accept() {
  return receiver_->accept().then(
      [this](kj::Own<kj::AsyncIoStream> stream) {
        if (connections_.size() < options_.max_connections)
          add(kj::mv(stream));
        else
          options_.log.warning(
              fmt::format("rpc: refused a connection: {} are open", connections_.size()));
        return accept();
      },
      [this](kj::Exception&& exception) {
        // Out of file descriptors, most likely: others may be closed by then.
        taskFailed(kj::mv(exception));
        return timer_.afterDelay(100 * kj::MILLISECONDS).then([this]() { return accept(); });
      });
}

void ServerLoop::add(kj::Own<kj::AsyncIoStream> stream) {
  const uint64_t id = next_key_++;
  auto connection = kj::heap<Connection>(kj::mv(stream), timer_);
  connection->rpc = capnp::makeRpcServer(
      connection->network, capnp::Capability::Client(kj::heap<FastServeServer>(*this, id)));
  // Closed from the mailbox: not from inside the promise that belongs to it.
  const auto closed = [this, id]() { mailbox_->post([this, id] { close(id); }); };
  connection->disconnected =
      connection->network.onDisconnect()
          .then([closed]() { closed(); }, [closed](kj::Exception&&) { closed(); })
          .eagerlyEvaluate(nullptr);
  connections_.emplace(id, kj::mv(connection));
  connection_count_ = connections_.size();
}

void ServerLoop::close(uint64_t id) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  for (auto at = running_.begin(); at != running_.end();) {
    if (at->second.connection != id) {
      ++at;
      continue;
    }
    service_.cancel(at->second.request);
    at = running_.erase(at);
  }
  connections_.erase(found);
  connection_count_ = connections_.size();
}

size_t ServerLoop::requests_of(uint64_t connection) const {
  size_t count = 0;
  for (const auto& [key, running] : running_) count += running.connection == connection;
  return count;
}

bool ServerLoop::silent_for_too_long(uint64_t id, Connection& connection) const {
  const kj::TimePoint now = timer_.now();
  if (!connection.greeted) return now - connection.opened >= to_kj(options_.hello_timeout);
  if (now - connection.stream.last_progress() < to_kj(options_.idle_timeout)) return false;
  return connection.stream.blocked() || requests_of(id) == 0;
}

kj::Promise<void> ServerLoop::watch_silence() {
  const Nanoseconds shortest = std::min(options_.hello_timeout, options_.idle_timeout);
  const Nanoseconds often = std::max<Nanoseconds>(shortest / 4, std::chrono::milliseconds(1));
  return timer_.afterDelay(to_kj(often)).then([this]() {
    std::vector<uint64_t> silent;
    for (auto& [id, connection] : connections_)
      if (silent_for_too_long(id, *connection)) silent.push_back(id);
    for (const uint64_t id : silent) {
      options_.log.info("rpc: closed a silent connection");
      close(id);
    }
    return watch_silence();
  });
}

Result<ServerLoop::Started> ServerLoop::start(uint64_t connection, GenerateRequest request,
                                              wire::EventSink::Client sink) {
  if (requests_of(connection) >= options_.max_requests_per_connection)
    return Error{
        ErrorCode::kResourceExhausted,
        fmt::format("has {} unfinished requests already", options_.max_requests_per_connection),
        "this connection", "wait for one to finish, or open another connection"};
  const uint64_t key = next_key_++;
  // The mailbox outlives the loop in the engine's hands, closed by then.
  auto submitted = service_.submit(
      std::move(request), [this, key, mailbox = mailbox_](std::vector<GenerateEvent> events) {
        mailbox->post(
            [this, key, events = std::move(events)]() mutable { deliver(key, std::move(events)); });
      });
  if (!submitted.ok()) return std::move(submitted).error();
  const auto ended = [this, key]() {
    mailbox_->post([this, key] {
      // Not finished when its client took no more: then there is something to cancel.
      cancel(key);
      running_.erase(key);
    });
  };
  running_.emplace(key,
                   Running{connection, *submitted, kj::heap<RequestStream>(kj::mv(sink), ended)});
  return Started{key, *submitted};
}

void ServerLoop::cancel(uint64_t key) {
  const auto found = running_.find(key);
  if (found != running_.end() && !found->second.stream->finished())
    service_.cancel(found->second.request);
}

void ServerLoop::deliver(uint64_t key, std::vector<GenerateEvent> events) {
  const auto found = running_.find(key);
  if (found == running_.end()) return;  // its client is gone
  for (GenerateEvent& event : events) found->second.stream->add(std::move(event));
  found->second.stream->send();
}

class RunningServer final : public RpcServer {
 public:
  RunningServer(RpcServerOptions options, std::shared_ptr<GenerateService> service,
                Listening listening)
      : options_(std::move(options)),
        service_(std::move(service)),
        port_(listening.port),
        endpoint_(std::move(listening.endpoint)) {
    std::promise<void> started;
    const std::future<void> ready = started.get_future();
    thread_ = std::thread(
        [this, socket = std::move(listening.socket), started = std::move(started)]() mutable {
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

 private:
  void run(Socket socket, std::promise<void> started) {
    LoopLog loop_log(options_.log);
    auto io = kj::setupAsyncIo();
    io.waitScope.setBusyPollInterval(64);  // turns between two looks at the sockets
    auto stop = kj::newPromiseAndFulfiller<void>();
    stop_ = stop.fulfiller.get();
    started.set_value();
    {
      ServerLoop loop(options_, *service_, mailbox_, connections_, io);
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
  kj::PromiseFulfiller<void>* stop_ = nullptr;  // the loop's; set before the constructor returns
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<RpcServer>> RpcServer::start(RpcServerOptions options,
                                                    std::shared_ptr<GenerateService> service) {
  FS_CHECK(service != nullptr);
  FS_ASSIGN(Listening listening, listen_on(options.address, options.port, options.allow_remote));
  return std::unique_ptr<RpcServer>(std::make_unique<RunningServer>(
      std::move(options), std::move(service), std::move(listening)));
}

}  // namespace fastserve
