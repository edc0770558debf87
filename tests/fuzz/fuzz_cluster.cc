// Bytes from anyone on a coordinator's control service: whatever comes, the next client is served.
#include <sys/socket.h>

#include <cstdint>
#include <memory>

#include "rpc/cluster_client.h"
#include "rpc/cluster_server.h"

namespace fastserve {
namespace {

/// Answers at once; every token is an administrator's, so that everything is within reach.
class InstantControl final : public ClusterControl {
 public:
  Result<std::vector<NodeStatus>> nodes() override { return std::vector<NodeStatus>(2); }
  Status drain(const std::string&, bool) override { return {}; }
  Status remove(const std::string&) override { return {}; }
  Result<std::string> train(const Json& request) override { return request.dump(); }
  Result<std::vector<ClusterJob>> jobs() override { return std::vector<ClusterJob>(2); }
  Result<ClusterJob> job(const std::string& id) override {
    ClusterJob job;
    job.id = id;
    job.state = id.size() % 2 == 0 ? "running" : "finished";
    return job;
  }
  Status pause(const std::string&) override { return {}; }
  Status resume(const std::string&) override { return {}; }
  Status cancel(const std::string&) override { return {}; }
  Result<std::vector<std::string>> log(const std::string&, uint64_t from, int most) override {
    return std::vector<std::string>(static_cast<size_t>(std::min(most, 100)), std::to_string(from));
  }
  Result<Json> audit(const std::string&) override { return Json(true); }
  Result<std::string> make_access_token(AccessRole, const std::string&, int64_t) override {
    return std::string("token");
  }
  Result<std::string> make_join_token(int64_t) override { return std::string("token"); }
  Result<Json> tokens() override { return Json(Json::Array{}); }
  Status revoke_token(const std::string&) override { return {}; }
  Result<Json> models(const std::string& model) override {
    return Json(Json::Array{Json::object({{"name", model}})});
  }
  Result<uint64_t> change_model(ModelChange, const std::string& model,
                                const std::string& to) override {
    return model.size() + to.size();
  }
  Status verify_model(const std::string&, const std::function<void(double)>& progress) override {
    progress(0.5);
    return {};
  }
  Status remove_job(const std::string&) override { return {}; }
  Result<std::string> deploy(const Json& request) override { return request.dump(); }
  Result<std::string> compress(const Json& request) override { return request.dump(); }
  Json status() override { return Json::object({}); }
};

std::pair<Socket, Socket> socket_pair() {
  int fds[2];
  FS_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
  return {Socket(fds[0]), Socket(fds[1])};
}

/// A server and a client that must always be served.
struct Service {
  Service() {
    ClusterServerOptions options;
    options.open_timeout = std::chrono::seconds(2);
    server = ClusterServer::start(
        control, [](const std::string&) -> Result<AccessRole> { return AccessRole::kAdmin; },
        options);
    auto [ours, theirs] = socket_pair();
    server->adopt(plain_stream(std::move(theirs), "client"));
    ClusterClientOptions patient;
    patient.timeout = std::chrono::minutes(1);
    client = std::move(
        ClusterClient::over(plain_stream(std::move(ours), "server"), "token", patient).value());
  }
  InstantControl control;
  std::unique_ptr<ClusterServer> server;
  std::unique_ptr<ClusterClient> client;
  uint64_t inputs = 0;
};

void send_to(ClusterServer& server, const uint8_t* data, size_t size) {
  auto [ours, theirs] = socket_pair();
  server.adopt(plain_stream(std::move(theirs), "stranger"));
  for (size_t sent = 0; sent < size;) {
    const ssize_t n = ::send(ours.get(), data + sent, size - sent, MSG_NOSIGNAL);
    if (n <= 0) break;
    sent += static_cast<size_t>(n);
  }
  ::shutdown(ours.get(), SHUT_WR);
  char buffer[4096];
  while (::recv(ours.get(), buffer, sizeof buffer, 0) > 0) {
  }
}

}  // namespace
}  // namespace fastserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fastserve::Service service;
  fastserve::send_to(*service.server, data, size);
  if (++service.inputs % 16 == 0) FS_CHECK(service.client->nodes().ok());
  return 0;
}
