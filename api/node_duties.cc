#include "api/node_duties.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "api/compression_text.h"
#include "api/duty_request.h"
#include "api/model_transfer.h"
#include "cluster/transfer_documents.h"
#include "net/document_stream.h"

namespace fastserve {
namespace {

constexpr auto kLook = std::chrono::milliseconds(50);
constexpr auto kAsking = std::chrono::seconds(10), kAnswer = std::chrono::seconds(120),
               kStorePatience = std::chrono::seconds(30);
/// What a deployment's requests get to finish when it ends here.
constexpr auto kGrace = std::chrono::seconds(5);

DutyReport doing(const char* stage, double fraction) {
  DutyReport report;
  report.state = DutyReport::State::kWorking;
  report.stage = stage;
  report.fraction = fraction;
  return report;
}

bool may_pass(const Error& error) {
  return error.code == ErrorCode::kUnavailable || error.code == ErrorCode::kDeadlineExceeded;
}

/// False when it was cancelled meanwhile.
bool wait(Nanoseconds time, const CancelFlag& cancel) {
  for (Nanoseconds slept{0}; slept < time && !cancel.raised(); slept += kLook)
    std::this_thread::sleep_for(kLook);
  return !cancel.raised();
}

Error cancelled(const std::string& id) {
  return {ErrorCode::kCancelled, "is no longer wanted of this node", "job " + id, ""};
}

/// The name under which a result waits here until the coordinator has it.
std::string waiting_name(const std::string& id) { return "duty-" + id; }

}  // namespace

NodeDuties::NodeDuties(Around around)
    : around_(std::move(around)),
      store_(std::make_shared<SharedStore>(around_.options.root / "node-models", clock_)) {
  for (const std::string& device : around_.devices) {
    NodeOptions options = around_.options;
    options.device = device;
    places_.push_back(std::make_unique<Place>(std::move(options), around_.isa, store_));
  }
  runner_ = std::make_unique<DutyRunner>(
      [this](const DutyOrder& order, const Tell& tell, const CancelFlag& cancel) {
        return work(order, tell, cancel);
      });
}

NodeDuties::~NodeDuties() = default;

Status NodeDuties::set(const std::string& orders) {
  FS_ASSIGN(auto read, parse_orders(orders));
  runner_->set(std::move(read));
  return {};
}

std::string NodeDuties::reports() { return encode_reports(runner_->reports()); }

NodeDuties::Place& NodeDuties::begin(const DutyOrder& order) {
  const std::lock_guard lock(mutex_);
  in_use_[order.model]++;
  Place& place = **std::min_element(
      places_.begin(), places_.end(),
      [](const auto& one, const auto& other) { return one->duties < other->duties; });
  place.duties++;
  return place;
}

Result<Json> NodeDuties::work(const DutyOrder& order, const Tell& tell, const CancelFlag& cancel) {
  Place& place = begin(order);
  auto done = order.kind == DutyKind::kDeploy ? serve(place.node, order, tell, cancel)
                                              : compress(place.node, order, tell, cancel);
  if (!done.ok() && !cancel.raised())
    around_.options.log.warning(fmt::format("job {}: {}", order.id, done.error().message()));
  const std::lock_guard lock(mutex_);
  place.duties--;
  if (--in_use_[order.model] == 0) in_use_.erase(order.model);
  return done;
}

Status NodeDuties::fetch_once(const std::string& model, const Tell& tell,
                              const CancelFlag& cancel) {
  FS_ASSIGN(const ModelRef ref, ModelRef::parse(model));
  FS_ASSIGN(TlsConnection connection, around_.dial());
  Stream& stream = *connection.stream;
  TransferAsk ask;
  ask.model = model;
  FS_TRY(send_document(stream, encode(ask), steady_now() + kAsking));
  FS_TRY(receive_word(stream, kAnswer));
  FS_ASSIGN(const auto store, store_->open(kStorePatience));
  TransferHooks hooks;
  hooks.cancel = &cancel;
  hooks.progress = [&](double fraction) { tell(doing("fetching", fraction)); };
  const auto as = [&](ModelListing&) -> Result<ReceiveAs> {
    return ReceiveAs{ref.name, ref.version};
  };
  const auto made = receive_model(stream, *store, as, hooks);
  return made.ok() ? Status() : made.error();
}

/// Removes what no duty uses.
Status NodeDuties::make_room() {
  FS_ASSIGN(const auto store, store_->open(kStorePatience));
  FS_ASSIGN(const auto models, store->list());
  for (const ModelInfo& model : models) {
    {
      const std::lock_guard lock(mutex_);
      if (in_use_.contains(model.ref.text())) continue;
    }
    const auto removed = store->remove({model.ref.name, model.ref.version, ""});
    if (removed.ok())
      around_.options.log.info(
          fmt::format("removed {}, which nothing here uses, for want of space", model.ref.text()));
  }
  return {};
}

/// Goes on while the coordinator is away: what has come stays.
Status NodeDuties::fetch(const std::string& model, const Tell& tell, const CancelFlag& cancel) {
  Nanoseconds pause = std::chrono::milliseconds(250);
  bool made_room = false;
  for (;;) {
    tell(doing("fetching", 0));
    const Status fetched = fetch_once(model, tell, cancel);
    if (fetched.ok()) return {};
    if (fetched.error().code == ErrorCode::kResourceExhausted && !made_room) {
      made_room = true;
      FS_TRY(make_room());
      continue;
    }
    if (!may_pass(fetched.error())) return fetched;
    around_.options.log.info(fmt::format("{}: {}; trying again", model, fetched.error().message()));
    if (!wait(pause, cancel)) return fetched;
    pause = std::min<Nanoseconds>(2 * pause, std::chrono::seconds(5));
  }
}

Result<Json> NodeDuties::serve(LocalNode& node, const DutyOrder& order, const Tell& tell,
                               const CancelFlag& cancel) {
  FS_ASSIGN(ClusterDeployRequest wanted, read_deploy_request(order.settings));
  FS_TRY(fetch(order.model, tell, cancel));
  if (cancel.raised()) return cancelled(order.id);
  wanted.deploy.models = {order.model};
  wanted.deploy.progress = [&](double fraction) { tell(doing("loading", fraction)); };
  tell(doing("loading", 0));
  FS_ASSIGN(auto made, node.deploy(wanted.deploy, true));
  const std::shared_ptr<Deployment> deployment = std::move(made);
  {
    const std::lock_guard lock(mutex_);
    deployed_[order.id] = deployment;
  }
  DutyReport serving;
  serving.state = DutyReport::State::kServing;
  serving.stage = "serving";
  serving.fraction = 1;
  const bool any = wanted.deploy.address == "0.0.0.0" || wanted.deploy.address == "::";
  serving.host = any ? around_.host : wanted.deploy.address;
  serving.port = deployment->port();
  tell(serving);
  around_.options.log.info(fmt::format("job {}: serving {} at {}:{}", order.id, order.model,
                                       serving.host, serving.port));
  while (!cancel.raised()) std::this_thread::sleep_for(kLook);
  {
    const std::lock_guard lock(mutex_);
    deployed_.erase(order.id);
  }
  deployment->drain(kGrace);
  around_.options.log.info(fmt::format("job {}: serves {} no longer", order.id, order.model));
  return cancelled(order.id);
}

Result<Json> NodeDuties::compress(LocalNode& node, const DutyOrder& order, const Tell& tell,
                                  const CancelFlag& cancel) {
  FS_ASSIGN(CompressRequest request, read_compress_request(order.settings));
  FS_TRY(fetch(order.model, tell, cancel));
  tell(doing("reading the text", 0));
  const auto ask_for = [&](TransferAsk::Want want) -> Result<TlsConnection> {
    FS_ASSIGN(TlsConnection connection, around_.dial());
    TransferAsk ask;
    ask.want = want;
    ask.duty = order.id;
    FS_TRY(send_document(*connection.stream, encode(ask), steady_now() + kAsking));
    FS_TRY(receive_word(*connection.stream, kAnswer));
    return connection;
  };
  {
    FS_ASSIGN(TlsConnection connection, ask_for(TransferAsk::Want::kText));
    FS_ASSIGN(const std::string bytes,
              receive_text(*connection.stream, CompressionText::kMostBytes, &cancel));
    FS_ASSIGN(CompressionText text, CompressionText::decode(bytes));
    request.text = std::make_shared<const CompressionText>(std::move(text));
  }
  request.model = order.model;
  request.to = waiting_name(order.id);
  const auto progress = [&](std::string_view stage, double fraction) {
    tell(doing(std::string(stage).c_str(), fraction));
  };
  FS_ASSIGN(CompressResult result, node.compress(request, progress, cancel));
  FS_ASSIGN(const auto store, store_->open(kStorePatience));
  TransferHooks hooks;
  hooks.cancel = &cancel;
  hooks.progress = [&](double fraction) { tell(doing("handing over", fraction)); };
  const auto hand_over = [&]() -> Result<ModelRef> {
    FS_ASSIGN(TlsConnection connection, ask_for(TransferAsk::Want::kPush));
    FS_ASSIGN(const auto model, store->send(result.model));
    return send_model(*connection.stream, *model, hooks);
  };
  auto made = hand_over();
  for (Nanoseconds pause = std::chrono::milliseconds(250); !made.ok() && may_pass(made.error());) {
    if (!wait(pause, cancel)) break;
    pause = std::min<Nanoseconds>(2 * pause, std::chrono::seconds(5));
    made = hand_over();
  }
  [[maybe_unused]] const auto removed = store->remove(result.model);
  if (!made.ok()) return std::move(made).error();
  result.model = *made;
  return to_json(result);
}

Status NodeDuties::speak_with(TlsConnection& connection) {
  const auto& roles = connection.claim->roles;
  if (std::find(roles.begin(), roles.end(), "coordinator") == roles.end())
    return Error{ErrorCode::kInvalidArgument, "is a node, and no coordinator",
                 connection.claim->node, "ask the coordinator"};
  FS_ASSIGN(const std::string document,
            receive_document(*connection.stream, steady_now() + kAsking));
  FS_ASSIGN(const TransferAsk ask, parse_transfer_ask(document));
  std::shared_ptr<Deployment> deployment;
  {
    const std::lock_guard lock(mutex_);
    const auto found = deployed_.find(ask.duty);
    if (found != deployed_.end()) deployment = found->second;
  }
  if (deployment == nullptr)
    return Error{ErrorCode::kUnavailable, "is not served here now", "job " + ask.duty,
                 "try again in a while"};
  FS_TRY(send_word(*connection.stream, Json::object({}), kAsking));
  deployment->adopt(std::move(connection.stream));
  return {};
}

void NodeDuties::generate_connected(TlsConnection connection) {
  const Status spoken = speak_with(connection);
  if (spoken.ok() || connection.stream == nullptr) return;
  [[maybe_unused]] const Status told =
      send_word(*connection.stream, spoken.error(), std::chrono::seconds(1));
}

}  // namespace fastserve
