// The coordinator's process: its folder, its port and what stands behind it.
#include "api/cluster_host.h"

#include <fmt/format.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "api/bulk_protocols.h"
#include "api/cluster_folder.h"
#include "api/cluster_jobs.h"
#include "api/job_folder.h"
#include "api/model_transfer.h"
#include "api/train_request.h"
#include "api/transfer_desk.h"
#include "cpu/cpu_device.h"
#include "net/gate.h"
#include "net/join.h"
#include "rpc/cluster_server.h"
#include "store/model_row.h"

namespace fastserve {
namespace {

constexpr auto kJoining = std::chrono::seconds(10);
constexpr auto kHour = std::chrono::hours(1);

class Coordinator final : public CoordinatorHost, public ClusterControl {
 public:
  explicit Coordinator(CoordinatorOptions options) : options_(std::move(options)) {
    if (options_.root.empty()) options_.root = default_root();
  }

  ~Coordinator() override {
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
      changed_.notify_all();
    }
    if (renewer_.joinable()) renewer_.join();
    gate_ = nullptr;    // nobody comes in any more
    server_ = nullptr;  // no call is under way any more
    desk_ = nullptr;
    if (coordinator_ != nullptr) coordinator_->stop();
    jobs_ = nullptr;
    {
      const std::lock_guard lock(duties_mutex_);
      reporting_ = nullptr;
    }
    duties_ = nullptr;
    coordinator_ = nullptr;
    if (folder_ != nullptr) folder_->withdraw();
  }

  Status open() {
    FS_ASSIGN(const Isa isa, choose_isa());
    FS_ASSIGN(folder_, ClusterFolder::open(options_.root));
    const ClusterSettings& settings = folder_->settings();
    if (options_.address.empty()) options_.address = settings.address;
    if (options_.port < 0) options_.port = settings.port;
    FS_ASSIGN(bulk_, BulkProtocols::make(options_.plain_bulk, options_.address));
    FS_ASSIGN(members_, Membership::open(folder_->state(), clock_, folder_->authority()));
    // Another address than loopback was the user's word to `cluster init` or `start`.
    FS_ASSIGN(BoundPort bound, bind_to(options_.address, options_.port, true));
    FS_ASSIGN(TlsParty party, make_party());
    FS_ASSIGN(coordinator_,
              ClusterCoordinator::start(
                  {members_->epoch(), &clock_, options_.log,
                   [this](const NodeClaim& claim, const std::string& request) {
                     return members_->renew(claim, request);
                   },
                   [this](const NodeClaim& claim) { return members_->admitted(claim); },
                   [this](const std::string& node, const std::string& reports) {
                     const std::lock_guard lock(duties_mutex_);
                     if (reporting_ != nullptr) reporting_->reported(node, reports);
                   },
                   [root = options_.root] { return jobs_with_checkpoints(root); }}));
    for (const MemberRecord& node : members_->nodes())
      coordinator_->set_draining(node.name, node.draining);
    const NodeOptions own{options_.root, usable_cores(), "cpu", options_.log};
    const auto store = std::make_shared<SharedStore>(options_.root / "models", clock_);
    jobs_ =
        std::make_unique<ClusterJobs>(ClusterJobs::Around{{options_.root, 0, "cpu", options_.log},
                                                          isa,
                                                          &folder_->state(),
                                                          coordinator_.get(),
                                                          store});
    FS_TRY(start_duties({own, isa, &folder_->state(), coordinator_.get(), store, &clock_,
                         [this] { return all_nodes(); }}));
    shelf_ = std::make_unique<LocalNode>(own, isa, TrainingEngine(), store);
    ClusterServerOptions serving;
    serving.log = options_.log;
    server_ = ClusterServer::start(
        *this, [this](const std::string& token) { return role_of(token); }, serving);
    const int port = bound.port;
    Gate::Options gate;
    gate.log = options_.log;
    FS_ASSIGN(gate_,
              Gate::start(
                  std::move(bound), std::move(party), protocols(),
                  [this](const NodeClaim& claim) { return members_->admitted(claim); }, gate));
    endpoint_ = endpoint_text(settings.advertise, port);
    FS_TRY(folder_->announce(*members_, options_.address, port));
    renewer_ = std::thread([this] { keep_certificate(); });
    options_.log.info(
        fmt::format("coordinator of cluster {} at {} (epoch {}), TLS 1.3, nodes by "
                    "certificate, clients by token",
                    members_->cluster(), endpoint_, members_->epoch()));
    if (const std::string note = members_->clock_note(); !note.empty()) options_.log.warning(note);
    return jobs_->take_up();
  }

  // CoordinatorHost
  ClusterControl& control() override { return *this; }
  const std::string& endpoint() const override { return endpoint_; }

  // ClusterControl
  Result<std::vector<NodeStatus>> nodes() override {
    std::vector<NodeStatus> nodes = all_nodes();
    duties_->show_in(nodes);
    return nodes;
  }
  std::vector<NodeStatus> all_nodes() {
    std::vector<NodeStatus> seen = coordinator_->nodes();
    for (const MemberRecord& member : members_->nodes()) {
      const bool known = std::any_of(seen.begin(), seen.end(), [&](const NodeStatus& node) {
        return node.name == member.name;
      });
      if (known) continue;
      NodeStatus status;
      status.name = member.name;
      status.roles = member.roles;
      status.lanes = member.lanes;
      status.version = member.version;
      status.joined_unix = member.joined_unix;
      status.state = NodeStatus::State::kGone;
      status.note = "has not connected since the coordinator started";
      seen.push_back(std::move(status));
    }
    return seen;
  }
  Status drain(const std::string& node, bool drain) override {
    FS_TRY(members_->set_draining(node, drain));
    coordinator_->set_draining(node, drain);
    return {};
  }
  Status remove(const std::string& node) override {
    FS_TRY(members_->remove(node));
    coordinator_->forget(node);
    return {};
  }
  Result<std::string> train(const Json& request) override {
    FS_ASSIGN(const TrainRequest wanted, read_train_request(request));
    return jobs_->train(wanted);
  }
  Result<std::vector<ClusterJob>> jobs() override {
    FS_ASSIGN(std::vector<ClusterJob> all, jobs_->jobs());
    for (ClusterJob& job : duties_->jobs()) all.push_back(std::move(job));
    std::stable_sort(all.begin(), all.end(), [](const ClusterJob& a, const ClusterJob& b) {
      return a.created_unix < b.created_unix;
    });
    return all;
  }
  Result<ClusterJob> job(const std::string& id) override {
    auto duty = duties_->job(id);
    return duty.ok() ? duty : jobs_->job(id);
  }
  Status pause(const std::string& id) override {
    FS_TRY(check_trains(id, "pause"));
    return jobs_->pause(id);
  }
  Status resume(const std::string& id) override {
    FS_TRY(check_trains(id, "resume"));
    return jobs_->resume(id);
  }
  Status cancel(const std::string& id) override {
    return duties_->job(id).ok() ? duties_->cancel(id) : jobs_->cancel(id);
  }
  Status remove_job(const std::string& id) override {
    return duties_->job(id).ok() ? duties_->remove(id) : jobs_->remove(id);
  }
  Result<std::vector<std::string>> log(const std::string& id, uint64_t from, int most) override {
    return duties_->job(id).ok() ? duties_->log(id, from, most) : jobs_->log(id, from, most);
  }
  Result<Json> audit(const std::string& id) override {
    FS_TRY(check_trains(id, "audit"));
    return audit_job(options_.root, id);
  }
  Result<Json> models(const std::string& model) override {
    FS_ASSIGN(const auto store, shelf_->glance_at_store());
    Json::Array rows;
    if (model.empty()) {
      FS_ASSIGN(const auto all, store->list());
      for (const ModelInfo& info : all) rows.push_back(model_row(info));
    } else {
      FS_ASSIGN(const ModelRef ref, ModelRef::parse(model));
      FS_ASSIGN(const ModelInfo info, store->show(ref));
      rows.push_back(model_row(info));
    }
    return Json(std::move(rows));
  }
  Result<uint64_t> change_model(ModelChange change, const std::string& model,
                                const std::string& to) override {
    FS_ASSIGN(const auto store, shelf_->open_store());
    if (change == ModelChange::kRename) return done(store->rename(model, to));
    FS_ASSIGN(const ModelRef ref, ModelRef::parse(model));
    if (change == ModelChange::kTag) return done(store->tag(ref, to));
    if (change == ModelChange::kUntag) return done(store->untag(ref.name, to));
    if (change == ModelChange::kPoint) return done(store->point(ref));
    return store->remove(ref);
  }
  Status verify_model(const std::string& model,
                      const std::function<void(double)>& progress) override {
    FS_ASSIGN(const ModelRef ref, ModelRef::parse(model));
    FS_ASSIGN(const auto store, shelf_->open_store());
    return store->verify(ref, progress, nullptr);
  }
  Result<std::string> deploy(const Json& request) override { return duties_->deploy(request); }
  Result<std::string> compress(const Json& request) override { return duties_->compress(request); }
  Result<std::string> make_access_token(AccessRole role, const std::string& label,
                                        int64_t lifetime_seconds) override {
    return members_->make_access_token(role, lifetime_seconds, label);
  }
  Result<std::string> make_join_token(int64_t lifetime_seconds) override {
    return members_->make_join_token(lifetime_seconds, 0, "");
  }
  Result<Json> tokens() override {
    Json::Array rows;
    for (const TokenRecord& token : members_->tokens())
      rows.push_back(describe_token(token, clock_.unix_seconds()));
    return Json(std::move(rows));
  }
  Status revoke_token(const std::string& id) override { return members_->revoke_token(id); }
  Json status() override {
    int64_t ready = 0, lanes = 0, running = 0;
    int64_t deployed = 0;
    for (const NodeStatus& node : coordinator_->nodes())
      if (node.state == NodeStatus::State::kReady) ready++, lanes += node.lanes;
    for (const ClusterJob& job : duties_->jobs())
      deployed += job.kind == duty_kind_name(DutyKind::kDeploy) && job.state == "running";
    if (auto all = jobs_->jobs(); all.ok())
      for (const ClusterJob& job : *all) running += job.state == "running";
    return Json::object({{"cluster", members_->cluster()},
                         {"epoch", members_->epoch()},
                         {"version", FASTSERVE_VERSION},
                         {"endpoint", endpoint_},
                         {"uptime_seconds", clock_.unix_seconds() - started_},
                         {"nodes_ready", ready},
                         {"nodes", members_->nodes().size()},
                         {"lanes", lanes},
                         {"jobs_running", running},
                         {"deployed", deployed},
                         {"clock_note", members_->clock_note()}});
  }

 private:
  static Result<uint64_t> done(const Status& status) {
    return status.ok() ? Result<uint64_t>(uint64_t{0}) : Result<uint64_t>(status.error());
  }

  Result<AccessRole> role_of(const std::string& token) {
    FS_ASSIGN(const auto access, members_->access(token));
    return access.role;
  }

  Status check_trains(const std::string& id, const char* what) {
    const auto duty = duties_->job(id);
    if (!duty.ok()) return {};
    return Error{ErrorCode::kUnsupported,
                 fmt::format("is for training, and this is a {}", duty->kind),
                 fmt::format("{} {}", what, id), "fsctl jobs cancel ends it"};
  }

  Status start_duties(ClusterDuties::Around around) {
    const auto store = around.store;
    FS_ASSIGN(duties_, ClusterDuties::start(std::move(around)));
    const std::lock_guard lock(duties_mutex_);
    reporting_ = duties_.get();
    desk_ = std::make_unique<TransferDesk>(TransferDesk::Around{
        duties_.get(), store, [this](const std::string& token) { return role_of(token); },
        [this](const std::string& node) { return dial_node(node); }, options_.log});
    return {};
  }

  Result<TlsConnection> dial_node(const std::string& name) {
    for (const NodeStatus& node : coordinator_->nodes()) {
      if (node.name != name) continue;
      const size_t colon = node.address.rfind(':');
      const std::string host = node.address.substr(0, colon);
      const int port = std::atoi(node.address.c_str() + colon + 1);
      FS_ASSIGN(Socket socket, connect_to(host, port, kJoining / 2));
      std::shared_ptr<const TlsParty> party;
      {
        const std::lock_guard lock(mutex_);
        party = dialling_;
      }
      return party->connect(std::move(socket), endpoint_text(host, port), name, {kGenerateProtocol},
                            kJoining / 2);
    }
    return Error{ErrorCode::kUnavailable, "has not connected", "node " + name, ""};
  }

  Result<TlsParty> make_party() {
    FS_ASSIGN(const Identity identity, folder_->make_identity(clock_.unix_seconds()));
    FS_ASSIGN(claim_, read_claim(identity.certificate));
    FS_ASSIGN(TlsParty dialling, TlsParty::create(identity));
    dialling_ = std::make_shared<const TlsParty>(std::move(dialling));
    return TlsParty::create(identity);
  }

  std::vector<Gate::Protocol> protocols() {
    const auto join = [this](TlsConnection connection) {
      const Status served = serve_join(
          std::move(connection),
          [this](const JoinAsk& ask) {
            // A name that is in use is no newcomer's, however long ago its node came.
            for (const NodeStatus& node : coordinator_->nodes())
              if (node.state == NodeStatus::State::kReady ||
                  node.state == NodeStatus::State::kDraining)
                members_->heard(node.name);
            return members_->join(ask, FASTSERVE_VERSION);
          },
          kJoining);
      if (!served.ok()) options_.log.warning("a node did not join: " + served.error().message());
    };
    auto all =
        bulk_.offers([this](TlsConnection lane) { coordinator_->bulk_connected(std::move(lane)); },
                     options_.log);
    const std::vector<Gate::Protocol> others = {
        {kJoinProtocol, true, join},
        {kClusterClientProtocol, true,
         [this](TlsConnection connection) { server_->adopt(std::move(connection.stream)); }},
        {kModelsProtocol, true,
         [this](TlsConnection connection) { desk_->connected(std::move(connection)); }},
        {kGenerateProtocol, true,
         [this](TlsConnection connection) { desk_->connected(std::move(connection)); }},
        {kControlProtocol, false, [this](TlsConnection connection) {
           members_->heard(connection.claim->node);
           coordinator_->control_connected(std::move(connection));
         }}};
    all.insert(all.end(), others.begin(), others.end());
    return all;
  }

  /// The coordinator's own certificate never runs out while it runs.
  void keep_certificate() {
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, kHour, [this] { return closing_; })) {
      if (!renewal_due(claim_, clock_.unix_seconds())) continue;
      auto party = make_party();
      if (party.ok())
        gate_->renew(std::move(*party));
      else
        options_.log.warning(party.error().message());
    }
  }

  CoordinatorOptions options_;
  BulkProtocols bulk_;
  SystemClock clock_;
  const int64_t started_ = clock_.unix_seconds();
  std::string endpoint_;
  std::unique_ptr<ClusterFolder> folder_;
  std::unique_ptr<Membership> members_;
  std::unique_ptr<ClusterCoordinator> coordinator_;
  std::unique_ptr<ClusterJobs> jobs_;
  std::unique_ptr<LocalNode> shelf_;
  std::unique_ptr<ClusterDuties> duties_;
  std::unique_ptr<TransferDesk> desk_;
  std::mutex duties_mutex_;
  ClusterDuties* reporting_ = nullptr;        // while reports are welcome; guarded by duties_mutex_
  std::shared_ptr<const TlsParty> dialling_;  // guarded by mutex_
  std::unique_ptr<ClusterServer> server_;
  std::unique_ptr<Gate> gate_;
  NodeClaim claim_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closing_ = false;
  std::thread renewer_;
};

}  // namespace

Result<std::unique_ptr<CoordinatorHost>> CoordinatorHost::start(const CoordinatorOptions& options) {
  auto host = std::make_unique<Coordinator>(options);
  FS_TRY(host->open());
  return std::unique_ptr<CoordinatorHost>(std::move(host));
}

}  // namespace fastserve
