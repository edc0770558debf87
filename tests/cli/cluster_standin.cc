// cluster_standin FOLDER: a coordinator with two nodes that are none and a job that is quickly
// done, for tests of fsctl. Writes FOLDER/endpoint, FOLDER/read and FOLDER/admin (tokens).
// For each byte of its standard input it drops its clients, as a coordinator that is started again
// does; at its end it ends.
#include <unistd.h>

#include <map>
#include <mutex>

#include "base/file.h"
#include "cluster/tokens.h"
#include "net/gate.h"
#include "net/identity.h"
#include "rpc/cluster_server.h"

namespace fastserve {
namespace {

class StandInControl final : public ClusterControl {
 public:
  Result<std::vector<NodeStatus>> nodes() override {
    const std::lock_guard lock(mutex_);
    std::vector<NodeStatus> all;
    for (const auto& [name, drained] : nodes_) {
      NodeStatus node;
      node.name = name;
      node.address = "10.0.0.2:7071";
      node.roles = {"trainer", "parameter-server"};
      node.state = drained ? NodeStatus::State::kDraining : NodeStatus::State::kReady;
      node.lanes = 4;
      node.job = "a1b2c3d4";
      node.share = 0.5;
      node.tokens_per_second = name == "slow" ? 100 : 1000;
      node.bytes_per_second = 2e6;
      node.last_heard_unix = SystemClock().unix_seconds();
      all.push_back(node);
    }
    return all;
  }
  Status drain(const std::string& node, bool drain) override {
    const std::lock_guard lock(mutex_);
    if (!nodes_.contains(node)) return none("node", node);
    nodes_[node] = drain;
    return {};
  }
  Status remove(const std::string& node) override {
    const std::lock_guard lock(mutex_);
    return nodes_.erase(node) > 0 ? Status() : none("node", node);
  }
  Result<std::string> train(const Json& request) override {
    const std::lock_guard lock(mutex_);
    FS_ASSIGN(job_.model, request.string_or("model", ""));
    FS_ASSIGN(job_.steps, request.int_or("steps", 50));
    job_.id = "a1b2c3d4";
    job_.state = job_.model == "stubborn" ? "waiting" : "running";
    job_.step = 0;
    job_.details = request;
    return job_.id;
  }
  Result<std::vector<ClusterJob>> jobs() override {
    const std::lock_guard lock(mutex_);
    return job_.id.empty() ? std::vector<ClusterJob>() : std::vector<ClusterJob>{job_};
  }
  /// Each look finds it ten steps further.
  Result<ClusterJob> job(const std::string& id) override {
    const std::lock_guard lock(mutex_);
    if (id != job_.id) return none("job", id);
    if (job_.state == "running") {
      job_.step = std::min(job_.step + 10, job_.steps);
      job_.loss = 4.0 - 0.01 * static_cast<double>(job_.step);
      job_.tokens_per_second = 2000;
      if (job_.step == job_.steps) {
        job_.state = job_.model == "doomed" ? "failed" : "finished";
        job_.note = job_.model == "doomed" ? "the loss is not finite" : job_.model + "@1";
      }
    }
    return job_;
  }
  Status pause(const std::string& id) override { return become(id, "paused"); }
  Status resume(const std::string& id) override { return become(id, "running"); }
  Status cancel(const std::string& id) override { return become(id, "cancelled"); }
  Status remove_job(const std::string& id) override {
    const std::lock_guard lock(mutex_);
    if (id != job_.id) return none("job", id);
    job_ = {};
    return {};
  }
  Result<std::vector<std::string>> log(const std::string& id, uint64_t from, int most) override {
    const std::lock_guard lock(mutex_);
    if (id != job_.id) return none("job", id);
    std::vector<std::string> lines;
    for (uint64_t i = from; i < 2500 && lines.size() < static_cast<size_t>(most); i++)
      lines.push_back("line " + std::to_string(i));
    return lines;
  }
  Result<Json> audit(const std::string& id) override {
    if (id != "a1b2c3d4") return none("job", id);
    return Json::object({{"samples", 600}});
  }
  Result<std::string> make_access_token(AccessRole, const std::string&, int64_t) override {
    return std::string("fsa1-fresh");
  }
  Result<std::string> make_join_token(int64_t) override { return std::string("fsj1-fresh"); }
  Result<Json> tokens() override { return Json(Json::Array{}); }
  Status revoke_token(const std::string&) override { return {}; }
  Result<Json> models(const std::string& model) override {
    if (!model.empty() && model != "poems") return none("model", model);
    return Json(Json::Array{Json::object({{"name", "poems"},
                                          {"version", 3},
                                          {"current", true},
                                          {"weight_format", "bf16"},
                                          {"made_by", "train"}})});
  }
  Result<uint64_t> change_model(ModelChange, const std::string& model,
                                const std::string&) override {
    return model.starts_with("poems") ? Result<uint64_t>(2048) : none("model", model);
  }
  Status verify_model(const std::string&, const std::function<void(double)>&) override {
    return {};
  }
  Result<std::string> deploy(const Json&) override { return none("node", "with the role server"); }
  Result<std::string> compress(const Json&) override { return none("model", "to compress"); }
  Json status() override { return Json::object({{"cluster", "c0ffee"}, {"epoch", 4}}); }

 private:
  static Error none(const std::string& what, const std::string& name) {
    return {ErrorCode::kNotFound, "no such " + what, name, ""};
  }
  Status become(const std::string& id, const char* state) {
    const std::lock_guard lock(mutex_);
    if (id != job_.id) return none("job", id);
    job_.state = state;
    return {};
  }

  std::mutex mutex_;
  std::map<std::string, bool> nodes_ = {{"fast", false}, {"quick", false}, {"slow", false}};
  ClusterJob job_;
};

Status run(const Path& folder) {
  const int64_t now = SystemClock().unix_seconds();
  FS_ASSIGN(const CertificateAuthority authority, CertificateAuthority::create(now));
  FS_ASSIGN(const std::string print, fingerprint(authority.certificate()));
  FS_ASSIGN(const KeyAndRequest made, make_key_and_request());
  FS_ASSIGN(const std::string certificate,
            authority.sign(made.request,
                           {authority.cluster(), "coordinator", {"coordinator"}, now + 3600}, now));
  FS_ASSIGN(TlsParty party, TlsParty::create({certificate, made.key, authority.certificate()}));
  const Token read = make_token(Token::Kind::kAccess, print);
  const Token admin = make_token(Token::Kind::kAccess, print);
  StandInControl control;
  const auto serve = [&] {
    return ClusterServer::start(control, [&](const std::string& token) -> Result<AccessRole> {
      if (token == read.text()) return AccessRole::kRead;
      if (token == admin.text()) return AccessRole::kAdmin;
      return Error{ErrorCode::kInvalidArgument, "is not known", "the token", ""};
    });
  };
  std::mutex mutex;
  auto server = serve();  // guarded by mutex
  FS_ASSIGN(BoundPort bound, bind_to("127.0.0.1", 0, false));
  FS_ASSIGN(const auto gate, Gate::start(std::move(bound), std::move(party),
                                         {{kClusterClientProtocol, true,
                                           [&](TlsConnection made) {
                                             const std::lock_guard lock(mutex);
                                             server->adopt(std::move(made.stream));
                                           }}},
                                         [](const NodeClaim&) { return Status(); }, {}));
  FS_TRY(write_file_atomically(folder / "read", read.text() + "\n"));
  FS_TRY(write_file_atomically(folder / "admin", admin.text() + "\n"));
  FS_TRY(write_file_atomically(folder / "endpoint", gate->endpoint() + "\n"));
  char byte;
  while (::read(STDIN_FILENO, &byte, 1) > 0) {
    const std::lock_guard lock(mutex);
    server = nullptr;
    server = serve();
  }
  return {};
}

}  // namespace
}  // namespace fastserve

int main(int, char** argv) {
  const auto ran = fastserve::run(argv[1]);
  return ran.ok() ? 0 : 1;
}
