// Bytes from anyone on the RPC port: whatever comes, the next client is served.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <memory>

#include "rpc/client.h"
#include "rpc/server.h"

namespace fastserve {
namespace {

/// Answers at once, without a thread of its own.
class InstantService final : public GenerateService {
 public:
  Result<RequestId> submit(GenerateRequest request, Sink sink) override {
    if (request.max_tokens < 0)
      return Error{ErrorCode::kInvalidArgument, "is negative", "max_tokens", ""};
    GenerateEvent first, last;
    first.tokens = {{1, 0, {}}};
    first.text = request.prompt;
    last.finish = FinishReason::kLength;
    sink({first, last});
    return RequestId{++requests_};
  }
  void cancel(RequestId) override {}
  std::vector<ServedModel> models() const override { return {{"a", "1", "", "", 1, 1, 1, 1}}; }
  ServerHealth health() const override { return {}; }
  Result<std::vector<int32_t>> tokenise(const std::string&, const std::string& text,
                                        bool) const override {
    return std::vector<int32_t>(text.begin(), text.end());
  }
  Result<std::string> detokenise(const std::string&, std::span<const int32_t> ids) const override {
    return std::string(ids.size(), 'x');
  }
  Result<ChatPrompt> format_chat(
      const std::string&, std::span<const std::pair<std::string, std::string>>) const override {
    return ChatPrompt{"chat", {}};
  }

 private:
  uint64_t requests_ = 0;
};

/// A server and a client that must always be served.
struct Port {
  Port() {
    RpcServerOptions options;
    options.hello_timeout = std::chrono::seconds(2);
    server = std::move(RpcServer::start(options, std::make_shared<InstantService>())).value();
    client =
        std::move(RpcClient::connect("127.0.0.1", server->port(), std::chrono::minutes(1))).value();
  }
  std::unique_ptr<RpcServer> server;
  std::unique_ptr<RpcClient> client;
  uint64_t inputs = 0;
};

void send_to(int port, const uint8_t* data, size_t size) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  FS_CHECK(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  for (size_t sent = 0; sent < size;) {
    const ssize_t n = ::send(fd, data + sent, size - sent, MSG_NOSIGNAL);
    if (n <= 0) break;
    sent += static_cast<size_t>(n);
  }
  ::shutdown(fd, SHUT_WR);
  char buffer[4096];
  while (::recv(fd, buffer, sizeof buffer, 0) > 0) {
  }
  ::close(fd);
}

}  // namespace
}  // namespace fastserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fastserve::Port port;
  fastserve::send_to(port.server->port(), data, size);
  if (++port.inputs % 16 == 0) FS_CHECK(port.client->health().ok());
  return 0;
}
