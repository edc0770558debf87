// The calls of schema/cluster.capnp, each a few lines over ClusterControl.
#include <fmt/format.h>

#include <algorithm>

#include "rpc/cluster_loop.h"
#include "rpc/cluster_progress.h"

namespace fastserve {
namespace {

constexpr uint16_t kProtocol = wire::CLUSTER_PROTOCOL;
constexpr uint16_t kOldestProtocol = 1;
constexpr const char* kServerName = "fastserve " FASTSERVE_VERSION;
constexpr size_t kLongestLine = 64 << 10;

using Kind = CallPool::Kind;

class WatchingServer final : public wire::Watching::Server {
 public:
  WatchingServer(ClusterLoop& loop, uint64_t watch) : loop_(loop), watch_(watch) {}
  ~WatchingServer() { loop_.watches().drop(watch_); }

 private:
  ClusterLoop& loop_;
  const uint64_t watch_;
};

/// What a session may do. Calls run on the pool, with their parameters copied.
class ControlServer final : public wire::Control::Server {
 public:
  ControlServer(ClusterLoop& loop, uint64_t connection, std::shared_ptr<ClusterSession> session)
      : loop_(loop), connection_(connection), session_(std::move(session)) {}

  kj::Promise<void> ping(PingContext) override { return kj::READY_NOW; }

  kj::Promise<void> status(StatusContext context) override {
    return answer<std::string>(
        context, AccessRole::kRead, "status", Kind::kShort,
        [](ClusterControl& control) -> Result<std::string> { return control.status().dump(); },
        [](auto& results, const std::string& text) { results.setStatus(to_text(text)); });
  }

  kj::Promise<void> nodes(NodesContext context) override {
    using Nodes = std::vector<NodeStatus>;
    return answer<Nodes>(
        context, AccessRole::kRead, "nodes", Kind::kShort,
        [](ClusterControl& control) { return control.nodes(); },
        [](auto& results, const Nodes& nodes) {
          auto list = results.initNodes(static_cast<unsigned>(nodes.size()));
          for (unsigned i = 0; i < nodes.size(); i++) write_node(list[i], nodes[i]);
        });
  }

  kj::Promise<void> drain(DrainContext context) override {
    const bool drain = context.getParams().getDrain();
    return act(context, AccessRole::kAdmin, "drain",
               [node = to_string(context.getParams().getNode()), drain](ClusterControl& control) {
                 return control.drain(node, drain);
               });
  }

  kj::Promise<void> remove(RemoveContext context) override {
    return act(context, AccessRole::kAdmin, "remove",
               [node = to_string(context.getParams().getNode())](ClusterControl& control) {
                 return control.remove(node);
               });
  }

  kj::Promise<void> train(TrainContext context) override {
    return begin(context, "train", &ClusterControl::train);
  }

  kj::Promise<void> jobs(JobsContext context) override {
    using Jobs = std::vector<ClusterJob>;
    return answer<Jobs>(
        context, AccessRole::kRead, "jobs", Kind::kShort,
        [](ClusterControl& control) { return control.jobs(); },
        [](auto& results, const Jobs& jobs) {
          if (const Status fits = write_jobs(results, jobs); !fits.ok())
            write_error(results.initError(), fits.error());
        });
  }

  kj::Promise<void> job(JobContext context) override {
    return answer<ClusterJob>(
        context, AccessRole::kRead, "job", Kind::kShort,
        [id = to_string(context.getParams().getId())](ClusterControl& control) {
          return control.job(id);
        },
        [](auto& results, const ClusterJob& job) {
          write_job(results.initJob(), job, job_bytes(job, true) <= kMostContentBytes);
        });
  }

  kj::Promise<void> pause(PauseContext context) override {
    return on_id(context, AccessRole::kRun, "pause", &ClusterControl::pause);
  }

  kj::Promise<void> resume(ResumeContext context) override {
    return on_id(context, AccessRole::kRun, "resume", &ClusterControl::resume);
  }

  kj::Promise<void> cancel(CancelContext context) override {
    return on_id(context, AccessRole::kRun, "cancel", &ClusterControl::cancel);
  }

  kj::Promise<void> log(LogContext context) override {
    const auto params = context.getParams();
    const uint64_t from = params.getFrom();
    const int most = static_cast<int>(std::min<uint32_t>(params.getMost(), 100'000));
    return answer<std::vector<std::string>>(
        context, AccessRole::kRead, "log", Kind::kShort,
        [id = to_string(params.getId()), from, most](ClusterControl& control) {
          return control.log(id, from, most);
        },
        [](auto& results, const std::vector<std::string>& lines) { write_lines(results, lines); });
  }

  kj::Promise<void> audit(AuditContext context) override {
    return answer<std::string>(
        context, AccessRole::kRead, "audit", Kind::kLong,
        [id = to_string(context.getParams().getId())](
            ClusterControl& control) -> Result<std::string> {
          FS_ASSIGN(const Json report, control.audit(id));
          return report.dump();
        },
        [](auto& results, const std::string& report) { results.setReport(to_text(report)); });
  }

  kj::Promise<void> makeAccessToken(MakeAccessTokenContext context) override {
    const auto params = context.getParams();
    const AccessRole role = read_role(params.getRole());
    const int64_t lifetime = params.getLifetimeSeconds();
    return answer<std::string>(
        context, AccessRole::kAdmin, "makeAccessToken", Kind::kShort,
        [role, label = to_string(params.getLabel()), lifetime](ClusterControl& control) {
          return control.make_access_token(role, label, lifetime);
        },
        [](auto& results, const std::string& token) { results.setToken(to_text(token)); });
  }

  kj::Promise<void> makeJoinToken(MakeJoinTokenContext context) override {
    return answer<std::string>(
        context, AccessRole::kAdmin, "makeJoinToken", Kind::kShort,
        [lifetime = context.getParams().getLifetimeSeconds()](ClusterControl& control) {
          return control.make_join_token(lifetime);
        },
        [](auto& results, const std::string& token) { results.setToken(to_text(token)); });
  }

  kj::Promise<void> tokens(TokensContext context) override {
    return answer<std::string>(
        context, AccessRole::kAdmin, "tokens", Kind::kShort,
        [](ClusterControl& control) -> Result<std::string> {
          FS_ASSIGN(const Json tokens, control.tokens());
          return tokens.dump();
        },
        [](auto& results, const std::string& text) { results.setTokens(to_text(text)); });
  }

  kj::Promise<void> revokeToken(RevokeTokenContext context) override {
    return on_id(context, AccessRole::kAdmin, "revokeToken", &ClusterControl::revoke_token);
  }

  kj::Promise<void> models(ModelsContext context) override {
    return answer<std::string>(
        context, AccessRole::kRead, "models", Kind::kLong,
        [model = to_string(context.getParams().getModel())](
            ClusterControl& control) -> Result<std::string> {
          FS_ASSIGN(Json models, control.models(model));
          return text_that_fits(std::move(models));
        },
        [](auto& results, const std::string& text) { results.setModels(to_text(text)); });
  }

  kj::Promise<void> changeModel(ChangeModelContext context) override {
    const auto params = context.getParams();
    const auto change = read_model_change(params.getChange());
    if (!change.ok()) {
      write_error(context.getResults().initError(), change.error());
      return kj::READY_NOW;
    }
    const bool for_admins = *change == ModelChange::kRename || *change == ModelChange::kRemove;
    return answer<uint64_t>(
        context, for_admins ? AccessRole::kAdmin : AccessRole::kRun, "changeModel", Kind::kLong,
        [change = *change, model = to_string(params.getModel()), to = to_string(params.getTo())](
            ClusterControl& control) { return control.change_model(change, model, to); },
        [](auto& results, uint64_t freed) { results.setFreedBytes(freed); });
  }

  kj::Promise<void> verifyModel(VerifyModelContext context) override {
    const auto params = context.getParams();
    const auto progress = std::make_shared<Progress>();
    auto told = tell_progress(loop_, progress, params.hasProgress(), params.getProgress());
    return act(context, AccessRole::kRun, "verifyModel",
               [model = to_string(params.getModel()), progress](ClusterControl& control) {
                 return control.verify_model(model, [&](double f) { progress->fraction = f; });
               })
        .exclusiveJoin(kj::mv(told));
  }

  kj::Promise<void> removeJob(RemoveJobContext context) override {
    return on_id(context, AccessRole::kAdmin, "removeJob", &ClusterControl::remove_job);
  }

  kj::Promise<void> deploy(DeployContext context) override {
    return begin(context, "deploy", &ClusterControl::deploy);
  }
  kj::Promise<void> compress(CompressContext context) override {
    return begin(context, "compress", &ClusterControl::compress);
  }

  kj::Promise<void> watch(WatchContext context) override;

 private:
  /// Runs `work` where it may block, and then writes what it answered.
  template <class T, class Context, class Work, class Write>
  kj::Promise<void> answer(Context& context, AccessRole least, const char* call, Kind kind,
                           Work work, Write write) {
    Status may = session_->may(least, call);
    if (may.ok()) may = loop_.admit(connection_);
    if (!may.ok()) {
      write_error(context.getResults().initError(), may.error());
      return kj::READY_NOW;
    }
    context.releaseParams();
    context.allowCancellation();
    const auto answered = std::make_shared<std::optional<Result<T>>>();
    // What runs elsewhere may outlive this: it holds only what outlives it, too.
    const auto elsewhere = [answered, work, session = session_, &service = loop_.service()] {
      const Status good = session->still_good(service.check_token, service.options.recheck);
      if (good.ok())
        answered->emplace(work(service.control));
      else
        answered->emplace(good.error());
    };
    return loop_.run_elsewhere(connection_, kind, elsewhere)
        .then([answered, context, write = kj::mv(write)]() mutable {
          auto results = context.getResults();
          if (!(*answered)->ok())
            write_error(results.initError(), (*answered)->error());
          else
            write(results, (*answered)->value());
        });
  }

  /// The same for a call that begins a job by a JSON object.
  template <class Context>
  kj::Promise<void> begin(Context& context, const char* call,
                          Result<std::string> (ClusterControl::*job)(const Json&)) {
    return answer<std::string>(
        context, AccessRole::kRun, call, Kind::kLong,
        [text = to_string(context.getParams().getRequest()), call,
         job](ClusterControl& control) -> Result<std::string> {
          auto request = Json::parse(text, "the request");
          if (request.ok() && request->is_object()) return (control.*job)(*request);
          return Error{ErrorCode::kInvalidArgument,
                       request.ok() ? "is no JSON object" : request.error().message(), call,
                       fmt::format("see {}() in schema/cluster.capnp", call)};
        },
        [](auto& results, const std::string& id) { results.setJob(to_text(id)); });
  }

  struct Done {};
  /// The same for a call that answers nothing.
  template <class Context, class Work>
  kj::Promise<void> act(Context& context, AccessRole least, const char* call, Work work) {
    return answer<Done>(
        context, least, call, Kind::kLong,
        [work](ClusterControl& control) -> Result<Done> {
          FS_TRY(work(control));
          return Done{};
        },
        [](auto&, const Done&) {});
  }

  /// The same for what the call's `id` names.
  template <class Context>
  kj::Promise<void> on_id(Context& context, AccessRole least, const char* call,
                          Status (ClusterControl::*what)(const std::string&)) {
    return act(context, least, call,
               [id = to_string(context.getParams().getId()), what](ClusterControl& control) {
                 return (control.*what)(id);
               });
  }

  /// As many lines as fit.
  template <class Results>
  static void write_lines(Results& results, const std::vector<std::string>& lines) {
    uint64_t bytes = 0;
    unsigned count = 0;
    while (count < lines.size() && bytes < kMostContentBytes)
      bytes += 16 + std::min(lines[count++].size(), kLongestLine);
    auto list = results.initLines(count);
    for (unsigned i = 0; i < count; i++) {
      if (lines[i].size() <= kLongestLine)
        list.set(i, to_text(lines[i]));
      else
        list.set(i, to_text(lines[i].substr(0, kLongestLine)));
    }
  }

  ClusterLoop& loop_;
  const uint64_t connection_;
  const std::shared_ptr<ClusterSession> session_;
};

kj::Promise<void> ControlServer::watch(WatchContext context) {
  const auto params = context.getParams();
  const ClusterWatches::Wanted wanted{to_string(params.getJob()), params.getWithNodes(),
                                      params.getUpdatesPerSecond()};
  Status may = session_->may(AccessRole::kRead, "watch");
  if (may.ok() && !params.hasSink())
    may = Error{ErrorCode::kInvalidArgument, "is missing", "sink", "pass an UpdateSink"};
  const size_t most = loop_.service().options.max_watches_per_connection;
  if (may.ok() && loop_.watches().count(connection_) >= most)
    may = Error{ErrorCode::kResourceExhausted, fmt::format("has {} watches already", most),
                "this connection", "end one, or watch all jobs at once"};
  if (!may.ok()) {
    write_error(context.getResults().initError(), may.error());
    return kj::READY_NOW;
  }
  auto sink = params.getSink();
  auto begin = [this, wanted, sink = kj::mv(sink)](auto& results, bool) mutable {
    if (!loop_.is_open(connection_)) return;
    const uint64_t key = loop_.watches().add(connection_, session_, wanted, kj::mv(sink));
    results.setWatching(kj::heap<WatchingServer>(loop_, key));
  };
  // A job that is not there is an error of this call.
  return answer<bool>(
      context, AccessRole::kRead, "watch", Kind::kShort,
      [id = wanted.job](ClusterControl& control) -> Result<bool> {
        if (!id.empty()) FS_TRY(control.job(id));
        return true;
      },
      kj::mv(begin));
}

/// What a stranger sees.
class DoorServer final : public wire::Cluster::Server {
 public:
  DoorServer(ClusterLoop& loop, uint64_t connection) : loop_(loop), connection_(connection) {}

  kj::Promise<void> open(OpenContext context) override {
    auto results = context.getResults();
    results.setProtocol(kProtocol);
    results.setOldestProtocol(kOldestProtocol);
    results.setServer(kServerName);
    const unsigned theirs = context.getParams().getProtocol();
    if (!loop_.try_once(connection_)) {
      write_error(results.initError(), {ErrorCode::kInvalidArgument, "has been called before",
                                        "open", "connect again to show another token"});
      return kj::READY_NOW;
    }
    if (theirs < kOldestProtocol || theirs > kProtocol) {
      write_error(results.initError(),
                  {ErrorCode::kUnsupported,
                   fmt::format("{} speaks protocol {} to {}, this client {}", kServerName,
                               kOldestProtocol, kProtocol, theirs),
                   "open", theirs > kProtocol ? "update the coordinator" : "update this client"});
      return kj::READY_NOW;
    }
    const auto token = to_string(context.getParams().getToken());
    context.releaseParams();
    context.allowCancellation();
    const auto answered = std::make_shared<std::optional<Result<AccessRole>>>();
    return loop_
        .run_elsewhere(connection_, Kind::kShort,
                       [answered, token, &service = loop_.service()] {
                         answered->emplace(service.check_token(token));
                       })
        .then([this, answered, token, context]() mutable {
          auto results = context.getResults();
          if (!(*answered)->ok()) {
            write_error(results.initError(), (*answered)->error());
            return;
          }
          const AccessRole role = (*answered)->value();
          if (!loop_.let_in(connection_)) return;
          results.setRole(write_role(role));
          results.setControl(kj::heap<ControlServer>(
              loop_, connection_, std::make_shared<ClusterSession>(token, role)));
        });
  }

 private:
  ClusterLoop& loop_;
  const uint64_t connection_;
};

}  // namespace

capnp::Capability::Client make_cluster_door(ClusterLoop& loop, uint64_t connection) {
  return kj::heap<DoorServer>(loop, connection);
}

}  // namespace fastserve
