#include "api/cluster_duties.h"

#include <fmt/format.h>

#include <algorithm>

#include "api/compression_text.h"
#include "api/duty_request.h"
#include "cluster/transfer_documents.h"
#include "store/names.h"

namespace fastserve {
namespace {

constexpr auto kLook = std::chrono::milliseconds(200);
constexpr auto kStorePatience = std::chrono::seconds(3);

ClusterJob described(const Duty& duty) {
  ClusterJob job;
  job.kind = duty_kind_name(duty.kind);
  job.id = duty.id;
  job.model = duty.published.empty() ? duty.model : duty.published;
  job.state = duty_state_name(duty.state);
  job.created_unix = duty.created_unix;
  job.incarnation = static_cast<uint64_t>(duty.lost) + 1;
  job.note = duty.note;
  const DutyReport& now = duty.last;
  job.details = Json::object({{"model", duty.model}, {"settings", duty.settings}});
  if (!duty.node.empty()) job.details.set("node", duty.node);
  if (!duty.pinned.empty()) job.details.set("wanted_node", duty.pinned);
  if (!duty.ended() && !now.stage.empty()) {
    job.details.set("stage", now.stage);
    job.details.set("fraction", now.fraction);
  }
  if (duty.kind == DutyKind::kDeploy) job.details.set("serving", duty.serving());
  if (now.port != 0) {
    job.details.set("address", now.host);
    job.details.set("port", now.port);
  }
  if (!duty.result.is_null()) job.details.set("result", duty.result);
  if (duty.error && duty.ended()) job.details.set("error", error_to_json(*duty.error));
  return job;
}

}  // namespace

ClusterDuties::ClusterDuties(Around around)
    : around_(std::move(around)),
      own_([this](const DutyOrder& order, const DutyRunner::Tell& tell, const CancelFlag& cancel) {
        return compress_here(order, tell, cancel);
      }) {}

Result<std::unique_ptr<ClusterDuties>> ClusterDuties::start(Around around) {
  auto duties = std::unique_ptr<ClusterDuties>(new ClusterDuties(std::move(around)));
  FS_ASSIGN(duties->board_, DutyBoard::open(*duties->around_.state, *duties->around_.clock));
  // Before any node comes: what it has been given and still does, it goes on with.
  duties->tell_nodes();
  duties->thread_ = std::thread([at = duties.get()] { at->live(); });
  return duties;
}

ClusterDuties::~ClusterDuties() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

/// Sends each node its orders, where they are not those that it was sent last.
void ClusterDuties::tell_nodes() {
  for (const std::string& node : board_->busy())
    if (!node.empty() && node != kCoordinatorItself) orders_.try_emplace(node);
  for (auto& [node, sent] : orders_) {
    std::string orders = encode_orders(board_->orders(node));
    if (orders == sent) continue;
    around_.coordinator->set_duties(node, orders);
    sent = std::move(orders);
  }
}

void ClusterDuties::live() {
  for (;;) {
    board_->report(kCoordinatorItself, own_.reports());
    if (!board_->busy().empty()) board_->settle(around_.nodes());
    own_.set(board_->orders(kCoordinatorItself));
    tell_nodes();
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kLook, [this] { return closing_ || news_; });
    news_ = false;
    if (closing_) return;
  }
}

Result<ModelRef> ClusterDuties::resolve(const std::string& model) const {
  FS_ASSIGN(const ModelRef ref, ModelRef::parse(model));
  FS_ASSIGN(const auto store, around_.store->glance());
  FS_ASSIGN(const ModelInfo info, store->show(ref));
  return info.ref;
}

/// What is asked for can be done by somebody, or why not.
Status ClusterDuties::check_nodes(DutyKind kind, const std::string& pinned) const {
  const char* role = duty_role(kind);
  std::string known;
  bool any = false;
  for (const NodeStatus& node : around_.nodes()) {
    const bool has = std::find(node.roles.begin(), node.roles.end(), role) != node.roles.end();
    if (node.name == pinned && !has)
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("has not the role {}, but {}", role, fmt::join(node.roles, ", ")),
                   "node " + pinned, fmt::format("fsctl node start --roles {} gives it one", role)};
    if (!has) continue;
    known += (known.empty() ? "" : ", ") + node.name;
    any = any || node.state == NodeStatus::State::kReady || node.name == pinned;
    if (node.name == pinned) return {};
  }
  if (!pinned.empty())
    return Error{ErrorCode::kNotFound, "is no node of this cluster", pinned,
                 known.empty() ? fmt::format("none has the role {}", role)
                               : fmt::format("with the role {} there are: {}", role, known)};
  if (any || kind == DutyKind::kCompress) return {};
  return Error{ErrorCode::kUnavailable,
               fmt::format("is the role of no node that is ready{}",
                           known.empty() ? "" : ", though of " + known),
               role, fmt::format("fsctl node start --join HOST:PORT --token ... --roles {}", role)};
}

Result<std::string> ClusterDuties::deploy(const Json& request) {
  FS_ASSIGN(const ClusterDeployRequest wanted, read_deploy_request(request));
  FS_ASSIGN(const ModelRef ref, resolve(wanted.model));
  FS_TRY(check_nodes(DutyKind::kDeploy, wanted.node));
  FS_ASSIGN(const std::string id, board_->add(DutyKind::kDeploy, ref.text(), request, wanted.node));
  const std::lock_guard lock(mutex_);
  news_ = true;
  changed_.notify_all();
  return id;
}

Result<std::string> ClusterDuties::compress(const Json& request) {
  FS_ASSIGN(const CompressRequest wanted, read_compress_request(request));
  FS_ASSIGN(const ModelRef ref, resolve(wanted.model));
  if (!wanted.to.empty()) FS_TRY(check_name(wanted.to));
  FS_ASSIGN(const std::string id, board_->add(DutyKind::kCompress, ref.text(), request, ""));
  const std::lock_guard lock(mutex_);
  news_ = true;
  changed_.notify_all();
  return id;
}

Status ClusterDuties::cancel(const std::string& id) {
  FS_TRY(board_->cancel(id));
  const std::lock_guard lock(mutex_);
  news_ = true;
  changed_.notify_all();
  return {};
}

Status ClusterDuties::remove(const std::string& id) { return board_->remove(id); }

Result<ClusterJob> ClusterDuties::job(const std::string& id) const {
  FS_ASSIGN(const Duty duty, board_->find(id));
  return described(duty);
}

std::vector<ClusterJob> ClusterDuties::jobs() const {
  std::vector<ClusterJob> all;
  for (const Duty& duty : board_->all()) all.push_back(described(duty));
  return all;
}

void ClusterDuties::show_in(std::vector<NodeStatus>& nodes) const {
  for (const Duty& duty : board_->all()) {
    if (duty.ended()) continue;
    for (NodeStatus& node : nodes)
      if (node.name == duty.node && node.job.empty()) node.job = duty.id;
  }
}

Result<std::vector<std::string>> ClusterDuties::log(const std::string& id, uint64_t from,
                                                    int most) const {
  FS_ASSIGN(const std::vector<std::string> events, board_->events(id));
  std::vector<std::string> lines;
  for (uint64_t i = from; i < events.size() && static_cast<int>(lines.size()) < most; i++)
    lines.push_back(events[i]);
  return lines;
}

void ClusterDuties::reported(const std::string& node, const std::string& reports) {
  auto read = parse_reports(reports);
  if (!read.ok())
    return around_.options.log.warning(fmt::format("node {}: {}", node, read.error().message()));
  board_->report(node, *read);
}

Result<Duty> ClusterDuties::serving(const std::string& model) const {
  FS_ASSIGN(const ModelRef ref, ModelRef::parse(model));
  if (ref.tag.empty()) return board_->serving(ref.text());
  FS_ASSIGN(const ModelRef tagged, resolve(model));
  return board_->serving(tagged.text());
}

Result<Duty> ClusterDuties::of_node(const std::string& id, const std::string& node) const {
  FS_ASSIGN(Duty duty, board_->find(id));
  if (duty.kind == DutyKind::kCompress && duty.node == node && !duty.ended()) return duty;
  return Error{ErrorCode::kInvalidArgument, "is no compression of node " + node, "job " + id,
               "it may have been cancelled, or given to another node"};
}

Result<std::string> ClusterDuties::text_for(const std::string& id, const std::string& node) {
  FS_ASSIGN(const Duty duty, of_node(id, node));
  FS_ASSIGN(const CompressRequest request, read_compress_request(duty.settings));
  FS_ASSIGN(const ModelRef ref, ModelRef::parse(duty.model));
  FS_ASSIGN(const auto store, around_.store->open(kStorePatience));
  FS_ASSIGN(const StoredModel model, store->open_model(ref));
  FS_ASSIGN(const CompressionText text, compression_text(request.data, model));
  return text.encode();
}

Result<ReceiveAs> ClusterDuties::place_for(const std::string& id, const std::string& node,
                                           ModelListing& listing) const {
  FS_ASSIGN(const Duty duty, of_node(id, node));
  FS_ASSIGN(const CompressRequest request, read_compress_request(duty.settings));
  FS_ASSIGN(const ModelRef from, ModelRef::parse(duty.model));
  listing.about.created_unix = around_.clock->unix_seconds();
  listing.about.lineage.made_by = "compress";
  listing.about.lineage.parent = duty.model;
  listing.about.lineage.details.set("job", id);
  ReceiveAs as{request.to.empty() ? from.name : request.to, 0};
  // Should it have come before, and only its last word have been lost: it is the same.
  if (const auto before = ModelRef::parse(duty.published); before.ok())
    as.version = before->version;
  return as;
}

Status ClusterDuties::published(const std::string& id, const ModelRef& model) {
  return board_->published(id, model.text());
}

/// What the job made before the coordinator was started again, and could not say any more.
Result<std::optional<Json>> ClusterDuties::made_before(const CompressRequest& request) const {
  FS_ASSIGN(const ModelRef from, ModelRef::parse(request.model));
  FS_ASSIGN(const auto store, around_.store->glance());
  FS_ASSIGN(const auto models, store->list());
  for (const ModelInfo& model : models) {
    const Json& card = model.lineage.details;
    const auto job = card.string_or("job", "");
    if (model.ref.name != (request.to.empty() ? from.name : request.to) || !job.ok() ||
        *job != request.job)
      continue;
    Json result = Json::object({{"model", model.ref.text()}, {"card", card}});
    for (const char* key : {"before", "after"})
      if (const Json* measured = card.find_set(key)) result.set(key, *measured);
    return std::optional(std::move(result));
  }
  return std::optional<Json>();
}

Result<Json> ClusterDuties::compress_here(const DutyOrder& order, const DutyRunner::Tell& tell,
                                          const CancelFlag& cancel) const {
  FS_ASSIGN(CompressRequest request, read_compress_request(order.settings));
  request.model = order.model;
  request.job = order.id;
  LocalNode node(around_.options, around_.isa, {}, around_.store);
  FS_ASSIGN(const auto made, made_before(request));
  if (made) return *made;
  const auto progress = [&](std::string_view stage, double fraction) {
    DutyReport report;
    report.state = DutyReport::State::kWorking;
    report.stage = stage;
    report.fraction = fraction;
    tell(report);
  };
  FS_ASSIGN(const CompressResult result, node.compress(request, progress, cancel));
  return to_json(result);
}

}  // namespace fastserve
