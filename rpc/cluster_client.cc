#include "rpc/cluster_client.h"

#include <fmt/format.h>

#include "cluster/tokens.h"
#include "net/tls.h"
#include "rpc/cluster_server.h"
#include "rpc/connected_cluster_client.h"

namespace fastserve {
namespace {

constexpr const char* kClientName = "fastserve " FASTSERVE_VERSION;
/// A quiet watch is told so every 5 s.
constexpr Nanoseconds kLongestSilence = std::chrono::seconds(5);

}  // namespace

Status ConnectedClusterClient::open(const std::string& token) {
  struct Opened {
    unsigned protocol, oldest;
    std::string server;
    AccessRole role;
    std::optional<Error> error;
  };
  auto opened = loop_.call<Opened>(Patience::kShort, [token](State& state) {
    auto open = state.door.openRequest();
    open.setProtocol(wire::CLUSTER_PROTOCOL);
    open.setClient(kClientName);
    open.setToken(to_text(token));
    return open.send().then([&state](auto&& reply) -> Result<Opened> {
      Opened opened{reply.getProtocol(), reply.getOldestProtocol(), to_string(reply.getServer()),
                    read_role(reply.getRole()), std::nullopt};
      if (reply.hasError())
        opened.error = read_error(reply.getError());
      else
        state.control = reply.getControl();
      return opened;
    });
  });
  if (!opened.ok()) {
    Error error = opened.error();
    if (error.code == ErrorCode::kUnavailable) {
      error.what = "closed the connection";
      error.hint = "it may have as many connections as it takes, or be no coordinator";
    }
    return error;
  }
  server_ = opened->server;
  role_ = opened->role;
  const unsigned own = wire::CLUSTER_PROTOCOL;
  if (own < opened->oldest || opened->protocol < own)
    return Error{ErrorCode::kUnsupported,
                 fmt::format("{} speaks protocol {} to {}, this client {}", server_, opened->oldest,
                             opened->protocol, own),
                 loop_.endpoint(),
                 own < opened->oldest ? "update this client" : "update the coordinator"};
  if (!opened->error) return {};
  if (opened->error->where.empty()) opened->error->where = loop_.endpoint();
  return std::move(*opened->error);
}

Result<Json> ConnectedClusterClient::cluster_status() {
  FS_ASSIGN(const std::string text,
            ask(
                Patience::kShort, [](auto& control) { return control.statusRequest(); },
                [](auto& reply) { return reply.getStatus(); }));
  return Json::parse(text, "the coordinator's status");
}

Result<std::vector<NodeStatus>> ConnectedClusterClient::nodes() {
  using Nodes = std::vector<NodeStatus>;
  return loop_.call<Nodes>(Patience::kShort, [](State& state) {
    return control(state).nodesRequest().send().then([](auto&& reply) -> Result<Nodes> {
      if (reply.hasError()) return read_error(reply.getError());
      Nodes nodes;
      for (const auto node : reply.getNodes()) nodes.push_back(read_node(node));
      return nodes;
    });
  });
}

Status ConnectedClusterClient::drain(const std::string& node, bool drain) {
  return act([node, drain](auto& control) {
    auto request = control.drainRequest();
    request.setNode(to_text(node));
    request.setDrain(drain);
    return request;
  });
}

Status ConnectedClusterClient::remove(const std::string& node) {
  return act([node](auto& control) {
    auto request = control.removeRequest();
    request.setNode(to_text(node));
    return request;
  });
}

Result<std::string> ConnectedClusterClient::train(const Json& request) {
  return begin(request, [](auto& control) { return control.trainRequest(); });
}

Result<std::vector<ClusterJob>> ConnectedClusterClient::jobs() {
  using Jobs = std::vector<ClusterJob>;
  return loop_.call<Jobs>(Patience::kShort, [](State& state) {
    return control(state).jobsRequest().send().then([](auto&& reply) -> Result<Jobs> {
      if (reply.hasError()) return read_error(reply.getError());
      Jobs jobs;
      for (const auto job : reply.getJobs()) {
        FS_ASSIGN(ClusterJob read, read_job(job));
        jobs.push_back(std::move(read));
      }
      return jobs;
    });
  });
}

Result<ClusterJob> ConnectedClusterClient::job(const std::string& id) {
  return loop_.call<ClusterJob>(Patience::kShort, [id](State& state) {
    auto request = control(state).jobRequest();
    request.setId(to_text(id));
    return request.send().then([](auto&& reply) -> Result<ClusterJob> {
      if (reply.hasError()) return read_error(reply.getError());
      return read_job(reply.getJob());
    });
  });
}

Status ConnectedClusterClient::pause(const std::string& id) {
  return act([id](auto& control) {
    auto request = control.pauseRequest();
    request.setId(to_text(id));
    return request;
  });
}

Status ConnectedClusterClient::resume(const std::string& id) {
  return act([id](auto& control) {
    auto request = control.resumeRequest();
    request.setId(to_text(id));
    return request;
  });
}

Status ConnectedClusterClient::cancel(const std::string& id) {
  return act([id](auto& control) {
    auto request = control.cancelRequest();
    request.setId(to_text(id));
    return request;
  });
}

Status ConnectedClusterClient::remove_job(const std::string& id) {
  return act([id](auto& control) {
    auto request = control.removeJobRequest();
    request.setId(to_text(id));
    return request;
  });
}

Result<std::vector<std::string>> ConnectedClusterClient::log(const std::string& id, uint64_t from,
                                                             int most) {
  using Lines = std::vector<std::string>;
  return loop_.call<Lines>(Patience::kShort, [id, from, most](State& state) {
    auto request = control(state).logRequest();
    request.setId(to_text(id));
    request.setFrom(from);
    request.setMost(static_cast<uint32_t>(std::max(0, most)));
    return request.send().then([](auto&& reply) -> Result<Lines> {
      if (reply.hasError()) return read_error(reply.getError());
      Lines lines;
      for (const auto line : reply.getLines()) lines.push_back(to_string(line));
      return lines;
    });
  });
}

Result<Json> ConnectedClusterClient::audit(const std::string& id) {
  FS_ASSIGN(const std::string text, ask(
                                        Patience::kWhileAlive,
                                        [id](auto& control) {
                                          auto request = control.auditRequest();
                                          request.setId(to_text(id));
                                          return request;
                                        },
                                        [](auto& reply) { return reply.getReport(); }));
  return Json::parse(text, "the audit of job " + id);
}

Result<std::string> ConnectedClusterClient::make_access_token(AccessRole role,
                                                              const std::string& label,
                                                              int64_t lifetime_seconds) {
  return ask(
      Patience::kShort,
      [role, label, lifetime_seconds](auto& control) {
        auto request = control.makeAccessTokenRequest();
        request.setRole(write_role(role));
        request.setLabel(to_text(label));
        request.setLifetimeSeconds(lifetime_seconds);
        return request;
      },
      [](auto& reply) { return reply.getToken(); });
}

Result<std::string> ConnectedClusterClient::make_join_token(int64_t lifetime_seconds) {
  return ask(
      Patience::kShort,
      [lifetime_seconds](auto& control) {
        auto request = control.makeJoinTokenRequest();
        request.setLifetimeSeconds(lifetime_seconds);
        return request;
      },
      [](auto& reply) { return reply.getToken(); });
}

Result<Json> ConnectedClusterClient::tokens() {
  FS_ASSIGN(const std::string text,
            ask(
                Patience::kShort, [](auto& control) { return control.tokensRequest(); },
                [](auto& reply) { return reply.getTokens(); }));
  FS_ASSIGN(Json tokens, Json::parse(text, "the cluster's tokens"));
  if (!tokens.is_array())
    return Error{ErrorCode::kCorrupt, "is no list of tokens", "the coordinator's answer", ""};
  return tokens;
}

Status ConnectedClusterClient::revoke_token(const std::string& id) {
  return act([id](auto& control) {
    auto request = control.revokeTokenRequest();
    request.setId(to_text(id));
    return request;
  });
}

/// On the loop's thread.
void ConnectedClusterClient::start_watch(State& state, const Watch& watch,
                                         const std::shared_ptr<ClusterWatched>& watched) {
  state.watched.push_back(watched);
  auto request = control(state).watchRequest();
  request.setJob(to_text(watch.job));
  request.setWithNodes(watch.with_nodes);
  request.setUpdatesPerSecond(watch.updates_per_second);
  request.setSink(kj::heap<UpdateSinkServer>(watched));
  state.tasks.add(request.send().then(
      [watched](auto&& reply) {
        if (reply.hasError())
          watched->fail(read_error(reply.getError()));
        else if (!watched->dropped)
          watched->watching = reply.getWatching();
      },
      [watched, endpoint = loop_.endpoint()](kj::Exception&& exception) {
        watched->fail(ClusterClientLoop::failure(exception, endpoint));
      }));
}

Status ConnectedClusterClient::watch(const Watch& watch,
                                     const std::function<bool(const ClusterUpdate&)>& on_update) {
  const auto watched = std::make_shared<ClusterWatched>();
  loop_.post([this, watch, watched](State& state) { start_watch(state, watch, watched); });
  // Its capabilities belong to the loop's thread: they are dropped there, whatever `on_update`
  // throws.
  const auto drop = kj::defer([this, watched]() {
    loop_.post([watched](State& state) {
      watched->drop();
      state.watched.remove(watched);
    });
  });
  return receive(watched, on_update);
}

Status ConnectedClusterClient::receive(const std::shared_ptr<ClusterWatched>& watched,
                                       const std::function<bool(const ClusterUpdate&)>& on_update) {
  Nanoseconds heard = ClusterClientLoop::now();
  while (true) {
    auto news = watched->wait(ClusterClientLoop::kLookAtCancel);
    if (loop_.cancelled())
      return Error{ErrorCode::kCancelled, "stopped watching", loop_.endpoint(), ""};
    if (news.failure) return std::move(*news.failure);
    if (!news.update) {
      if (ClusterClientLoop::now() - heard < loop_.timeout() + kLongestSilence) continue;
      return loop_.no_answer();
    }
    if (!news.update->ok()) return news.update->error();
    UpdateContent& content = **news.update;
    if (content.error) return std::move(*content.error);
    const bool wants_more =
        on_update({std::move(content.jobs), std::move(content.nodes), content.last});
    loop_.post([watched](State&) { watched->release(); });
    if (content.last || !wants_more) return {};
    heard = ClusterClientLoop::now();
  }
}

Result<std::unique_ptr<ClusterClient>> ClusterClient::over(std::unique_ptr<Stream> stream,
                                                           const std::string& access_token,
                                                           const ClusterClientOptions& options) {
  auto client = std::make_unique<ConnectedClusterClient>(std::move(stream), options);
  FS_TRY(client->open(access_token));
  return std::unique_ptr<ClusterClient>(std::move(client));
}

Result<std::unique_ptr<ClusterClient>> ClusterClient::connect(const std::string& host, int port,
                                                              const std::string& access_token,
                                                              const ClusterClientOptions& options) {
  FS_ASSIGN(const Token token, parse_token(access_token, Token::Kind::kAccess));
  auto socket = connect_to(host, port, options.timeout);
  if (!socket.ok()) {
    Error error = socket.error();
    if (error.hint.find("fsctl deploy") != std::string::npos)
      error.hint = "see whether the cluster's coordinator runs there: fsctl cluster start";
    return error;
  }
  FS_ASSIGN(TlsConnection secured,
            connect_to_join(std::move(*socket), endpoint_text(host, port), token.authority,
                            kClusterClientProtocol, options.timeout));
  return over(std::move(secured.stream), access_token, options);
}

}  // namespace fastserve
