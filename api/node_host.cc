// A node's process: its identity, its port for tensors, and its actors.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <thread>

#include "actors/cluster_coordinator.h"
#include "actors/cluster_node.h"
#include "api/bulk_protocols.h"
#include "api/cluster_folder.h"
#include "api/cluster_host.h"
#include "api/device_choice.h"
#include "api/model_transfer.h"
#include "api/node_duties.h"
#include "api/transfer_desk.h"
#include "base/endpoint.h"
#include "cluster/tokens.h"
#include "cpu/cpu_device.h"
#include "net/document_stream.h"
#include "net/gate.h"
#include "net/join.h"

namespace fastserve {
namespace {

constexpr auto kJoining = std::chrono::seconds(15), kDialling = std::chrono::seconds(5),
               kPatience = std::chrono::seconds(30);

std::string own_name() {
  char host[256] = "";
  if (::gethostname(host, sizeof host - 1) != 0 || host[0] == '\0') return "node";
  return host;
}

class Host final : public NodeHost {
 public:
  explicit Host(NodeHostOptions options) : options_(std::move(options)) {
    if (options_.root.empty()) options_.root = default_root();
    if (options_.lanes == 0) options_.lanes = usable_cores();
  }

  Status open() {
    FS_ASSIGN(bulk_, BulkProtocols::make(options_.plain_bulk, options_.address));
    FS_ASSIGN(folder_, NodeFolder::open(options_.root));
    FS_TRY(join());
    FS_ASSIGN(TlsParty party, TlsParty::create(membership_.identity));
    party_ = std::make_shared<const TlsParty>(std::move(party));
    FS_ASSIGN(TlsParty serving, TlsParty::create(membership_.identity));
    FS_ASSIGN(BoundPort bound, bind_to(options_.address, options_.port, true));
    const int port = bound.port;
    FS_TRY(start_node(port));
    Gate::Options gate;
    gate.log = options_.log;
    FS_ASSIGN(gate_, Gate::start(
                         std::move(bound), std::move(serving), protocols(),
                         [this](const NodeClaim& claim) { return admitted(claim); }, gate));
    options_.log.info(fmt::format("node {} of cluster {}: {} lanes, roles {}, tensors at {}:{}",
                                  membership_.name, membership_.cluster, options_.lanes,
                                  fmt::join(membership_.roles, ","), host(), port));
    return {};
  }

  ~Host() override {
    gate_ = nullptr;
    node_ = nullptr;
    duties_ = nullptr;
  }

  const std::string& name() const override { return membership_.name; }
  Status run(const CancelFlag& cancel) override { return node_->run(cancel); }

 private:
  const std::string& host() const {
    return options_.advertise.empty() ? options_.address : options_.advertise;
  }

  /// The coordinator needs no word of its own: no node gets a certificate of its name.
  Status admitted(const NodeClaim& claim) {
    return claim.node == kCoordinatorName ? Status() : node_->admitted(claim);
  }

  std::vector<Gate::Protocol> protocols() {
    auto all = bulk_.offers(
        [this](TlsConnection lane) {
          tell(lane);
          node_->bulk_connected(std::move(lane));
        },
        options_.log);
    all.push_back({kGenerateProtocol, false, [this](TlsConnection connection) {
                     duties_->generate_connected(std::move(connection));
                   }});
    return all;
  }

  /// Takes up what it joined before, or joins.
  Status join() {
    const auto& before = folder_->membership();
    if (before && options_.token.empty()) {
      membership_ = *before;
      if (!options_.join.empty()) membership_.coordinator = options_.join;
      return {};
    }
    if (options_.token.empty() || options_.join.empty())
      return Error{ErrorCode::kInvalidArgument, "has not joined a cluster yet", "this node",
                   "fsctl node start --join HOST:PORT --token TOKEN; fsctl cluster token create "
                   "--kind join on the coordinator's host makes a token"};
    FS_ASSIGN(const Token token, parse_token(options_.token, Token::Kind::kJoin));
    FS_ASSIGN(const auto place, parse_endpoint(options_.join));
    FS_ASSIGN(const KeyAndRequest key, folder_->join_key());
    JoinAsk ask;
    ask.version = FASTSERVE_VERSION;
    ask.token = options_.token;
    ask.name = !options_.name.empty() ? options_.name : before ? before->name : own_name();
    ask.roles = !options_.roles.empty() ? options_.roles
                                        : std::vector<std::string>{"trainer", "parameter-server"};
    ask.lanes = options_.lanes;
    membership_.coordinator = options_.join;
    membership_.name = ask.name;
    membership_.roles = ask.roles;
    auto identity = ask_to_join({place.host, place.port, token.authority}, ask, key);
    if (!identity.ok()) return go_on_as_before(token, ask.name, std::move(identity).error());
    membership_.identity = std::move(*identity);
    FS_ASSIGN(const NodeClaim claim, read_claim(membership_.identity.certificate));
    membership_.cluster = claim.cluster;
    return folder_->keep(membership_, key.request);
  }

  /// A token that stays in a service's settings is for the first start: that it has expired, or
  /// that the coordinator is away, keeps no node out that has joined before.
  Status go_on_as_before(const Token& token, const std::string& name, Error why) {
    const auto& before = folder_->membership();
    if (!before || before->name != name) return why;
    const auto print = fingerprint(before->identity.authority);
    if (!print.ok() || *print != token.authority) return why;
    membership_ = *before;
    membership_.coordinator = options_.join;
    options_.log.info("goes on as it joined before: " + why.message());
    return {};
  }

  /// The coordinator may be starting as well: waits for it.
  Result<Identity> ask_to_join(const JoinTarget& target, const JoinAsk& ask,
                               const KeyAndRequest& key) {
    for (const Nanoseconds until = clock_.now() + kPatience;;) {
      auto identity = join_cluster(target, ask, key, kJoining);
      if (identity.ok() || identity.error().code != ErrorCode::kUnavailable || clock_.now() > until)
        return identity;
      std::this_thread::sleep_for(std::chrono::milliseconds(250));
    }
  }

  void tell(const TlsConnection& lane) const {
    options_.log.info(fmt::format("lane to {}: {}", lane.claim ? lane.claim->node : "?",
                                  BulkProtocols::told(lane)));
  }

  Result<TlsConnection> dial_stream(const std::string& host, int port,
                                    const std::string& node) const {
    FS_ASSIGN(Socket socket, connect_to(host, port, kDialling));
    const auto protocols = bulk_.wanted(socket);
    return greet(std::move(socket), host, port, node, protocols);
  }

  Result<TlsConnection> dial_bulk(const std::string& host, int port,
                                  const std::string& node) const {
    FS_ASSIGN(TlsConnection lane, dial_stream(host, port, node));
    LanePart part{new_lane_name(), 0, static_cast<uint32_t>(options_.streams)};
    if (part.count == 0) part.count = streams_wanted(*lane.stream);
    FS_TRY(announce(*lane.stream, part, steady_now() + kDialling));
    for (part.index = 1; part.index < part.count; part.index++) {
      FS_ASSIGN(TlsConnection more, dial_stream(host, port, node));
      FS_TRY(announce(*more.stream, part, steady_now() + kDialling));
      lane.more.push_back(std::move(more.stream));
    }
    tell(lane);
    return lane;
  }

  Result<TlsConnection> dial_coordinator(const std::string& host, int port,
                                         const char* protocol) const {
    FS_ASSIGN(Socket socket, connect_to(host, port, kDialling));
    return greet(std::move(socket), host, port, kCoordinatorName, {protocol});
  }

  Result<TlsConnection> greet(Socket socket, const std::string& host, int port,
                              const std::string& node,
                              const std::vector<std::string>& protocols) const {
    std::shared_ptr<const TlsParty> party;
    {
      std::lock_guard lock(mutex_);
      party = party_;
    }
    return party->connect(std::move(socket), endpoint_text(host, port), node, protocols, kDialling);
  }

  /// From the next connection on, the node shows its new certificate.
  Status renew(const std::string& certificate) {
    FS_ASSIGN(const KeyAndRequest key, folder_->join_key());
    NodeMembership next = membership_;
    next.identity.certificate = certificate;
    FS_ASSIGN(TlsParty party, TlsParty::create(next.identity));
    FS_ASSIGN(TlsParty serving, TlsParty::create(next.identity));
    FS_TRY(folder_->keep(next, key.request));
    membership_ = std::move(next);
    {
      std::lock_guard lock(mutex_);
      party_ = std::make_shared<const TlsParty>(std::move(party));
    }
    gate_->renew(std::move(serving));
    return {};
  }

  Status start_node(int port) {
    FS_ASSIGN(const auto place, parse_endpoint(membership_.coordinator));
    ClusterNode::Config config;
    config.name = membership_.name;
    config.roles = membership_.roles;
    config.lanes = options_.lanes;
    FS_ASSIGN(const Isa isa, choose_isa());
    FS_ASSIGN(const ChosenDevice device,
              choose_device(options_.device, isa, options_.lanes, options_.root / "gpu-plans"));
    options_.log.info(device.line());
    config.make_device = with_graph_use(device.make, {.log = options_.log});
    config.make_host = device.make_host;
    for (const DeviceFactory& make : device.more)
      config.more_devices.push_back(with_graph_use(make, {.log = options_.log}));
    config.host = host();
    config.port = port;
    config.data_folder = options_.root / "node-data";
    config.pieces_folder = options_.root / "node-checkpoints";
    config.clock = &clock_;
    config.log = options_.log;
    config.dial_control = [this, place = place] {
      return dial_coordinator(place.host, place.port, kControlProtocol);
    };
    duties_ = std::make_unique<NodeDuties>(
        NodeDuties::Around{{options_.root, options_.lanes, options_.device, options_.log},
                           isa,
                           device.more.empty() ? std::vector{options_.device} : device.words,
                           host(),
                           [this, place = place] {
                             return dial_coordinator(place.host, place.port, kModelsProtocol);
                           }});
    config.duties = [this](const std::string& orders) { return duties_->set(orders); };
    config.duty_reports = [this] { return duties_->reports(); };
    config.dial_bulk = [this, place = place] {
      return dial_bulk(place.host, place.port, kCoordinatorName);
    };
    config.renewal = [this]() -> std::optional<std::string> {
      const auto claim = read_claim(membership_.identity.certificate);
      if (!claim.ok() || !renewal_due(*claim, clock_.unix_seconds())) return std::nullopt;
      const auto key = folder_->join_key();
      return key.ok() ? std::optional(key->request) : std::nullopt;
    };
    config.renewed = [this](const std::string& certificate) { return renew(certificate); };
    config.dial_peer = [this](const std::string& node, const std::string& host, int at) {
      return dial_bulk(host, at, node);
    };
    FS_ASSIGN(node_, ClusterNode::start(std::move(config)));
    return {};
  }

  NodeHostOptions options_;
  BulkProtocols bulk_;
  SystemClock clock_;
  std::unique_ptr<NodeFolder> folder_;
  NodeMembership membership_;
  mutable std::mutex mutex_;
  std::shared_ptr<const TlsParty> party_;  // guarded by mutex_
  std::unique_ptr<NodeDuties> duties_;
  std::unique_ptr<ClusterNode> node_;
  std::unique_ptr<Gate> gate_;
};

}  // namespace

Result<std::unique_ptr<NodeHost>> NodeHost::start(const NodeHostOptions& options) {
  auto host = std::make_unique<Host>(options);
  FS_TRY(host->open());
  return std::unique_ptr<NodeHost>(std::move(host));
}

}  // namespace fastserve
