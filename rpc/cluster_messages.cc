#include "rpc/cluster_messages.h"

#include <algorithm>

namespace fastserve {
namespace {

// The numbers of both enumerations are written side by side, so that a cast converts.
static_assert(static_cast<int>(wire::Role::ADMIN) == static_cast<int>(AccessRole::kAdmin));
static_assert(static_cast<int>(wire::Node::State::GONE) ==
              static_cast<int>(NodeStatus::State::kGone));

}  // namespace

wire::Role write_role(AccessRole role) { return static_cast<wire::Role>(role); }

AccessRole read_role(wire::Role role) {
  return role <= wire::Role::ADMIN ? static_cast<AccessRole>(role) : AccessRole::kRead;
}

wire::ModelChange write_model_change(ModelChange change) {
  return static_cast<wire::ModelChange>(change);
}

Result<ModelChange> read_model_change(wire::ModelChange change) {
  const auto number = static_cast<uint16_t>(change);
  if (number <= static_cast<uint16_t>(ModelChange::kRemove))
    return static_cast<ModelChange>(number);
  return Error{ErrorCode::kUnsupported, "is of a kind that is not known here", "changeModel",
               "update the coordinator"};
}

Result<std::string> text_that_fits(Json models) {
  std::string text = models.dump();
  if (text.size() <= kMostContentBytes) return text;
  if (models.is_array())
    for (Json& model : models.as_array()) model.set("details", Json());
  text = models.dump();
  if (text.size() <= kMostContentBytes) return text;
  return Error{ErrorCode::kResourceExhausted, "are more than fit into a message", "the models",
               "ask for one by its name"};
}

void write_node(wire::Node::Builder out, const NodeStatus& node) {
  out.setName(to_text(node.name));
  out.setAddress(to_text(node.address));
  auto roles = out.initRoles(static_cast<unsigned>(node.roles.size()));
  for (unsigned i = 0; i < node.roles.size(); i++) roles.set(i, to_text(node.roles[i]));
  out.setState(static_cast<wire::Node::State>(node.state));
  out.setLanes(node.lanes);
  out.setVersion(to_text(node.version));
  out.setDevice(to_text(node.device));
  out.setNumericsId(to_text(node.numerics_id));
  out.setJoinedUnix(node.joined_unix);
  out.setLastHeardUnix(node.last_heard_unix);
  out.setClockSkewSeconds(node.clock_skew_seconds);
  out.setNote(to_text(node.note));
  out.setJob(to_text(node.job));
  out.setShare(node.share);
  out.setTokensPerSecond(node.tokens_per_second);
  out.setBytesPerSecond(node.bytes_per_second);
}

NodeStatus read_node(wire::Node::Reader in) {
  NodeStatus node;
  node.name = to_string(in.getName());
  node.address = to_string(in.getAddress());
  for (const auto role : in.getRoles()) node.roles.push_back(to_string(role));
  node.note = to_string(in.getNote());
  if (in.getState() <= wire::Node::State::GONE) {
    node.state = static_cast<NodeStatus::State>(in.getState());
  } else {
    node.state = NodeStatus::State::kSilent;
    node.note +=
        (node.note.empty() ? "" : "; ") + std::string("its state is none this client knows");
  }
  node.lanes = in.getLanes();
  node.version = to_string(in.getVersion());
  node.device = to_string(in.getDevice());
  node.numerics_id = to_string(in.getNumericsId());
  node.joined_unix = in.getJoinedUnix();
  node.last_heard_unix = in.getLastHeardUnix();
  node.clock_skew_seconds = in.getClockSkewSeconds();
  node.job = to_string(in.getJob());
  node.share = in.getShare();
  node.tokens_per_second = in.getTokensPerSecond();
  node.bytes_per_second = in.getBytesPerSecond();
  return node;
}

void write_job(wire::Job::Builder out, const ClusterJob& job, bool with_details) {
  out.setId(to_text(job.id));
  out.setModel(to_text(job.model));
  out.setState(to_text(job.state));
  out.setCreatedUnix(job.created_unix);
  out.setStep(job.step);
  out.setSteps(job.steps);
  out.setLoss(job.loss);
  out.setValidationLoss(job.validation_loss);
  out.setTokensPerSecond(job.tokens_per_second);
  out.setEtaSeconds(job.eta_seconds);
  out.setIncarnation(job.incarnation);
  out.setReplayedSteps(job.replayed_steps);
  out.setNote(to_text(job.note));
  out.setKind(to_text(job.kind));
  if (with_details && !job.details.is_null()) out.setDetails(to_text(job.details.dump()));
}

uint64_t job_bytes(const ClusterJob& job, bool with_details) {
  constexpr uint64_t kFixed = 256;
  const uint64_t details = with_details && !job.details.is_null() ? job.details.dump().size() : 0;
  return kFixed + job.id.size() + job.kind.size() + job.model.size() + job.state.size() +
         job.note.size() + details;
}

Result<ClusterJob> read_job(wire::Job::Reader in) {
  ClusterJob job;
  job.id = to_string(in.getId());
  job.model = to_string(in.getModel());
  job.state = to_string(in.getState());
  job.created_unix = in.getCreatedUnix();
  job.step = in.getStep();
  job.steps = in.getSteps();
  job.loss = in.getLoss();
  job.validation_loss = in.getValidationLoss();
  job.tokens_per_second = in.getTokensPerSecond();
  job.eta_seconds = in.getEtaSeconds();
  job.incarnation = in.getIncarnation();
  job.replayed_steps = in.getReplayedSteps();
  job.note = to_string(in.getNote());
  if (in.getKind().size() > 0) job.kind = to_string(in.getKind());
  if (in.getDetails().size() > 0) {
    FS_ASSIGN(job.details, Json::parse(to_string(in.getDetails()), "details of job " + job.id));
  }
  return job;
}

void write_update(wire::Update::Builder out, const UpdateContent& update) {
  if (update.error) {
    write_error(out.initError(), *update.error);
  } else if (const Status fits = write_jobs(out, update.jobs); !fits.ok()) {
    write_error(out.initError(), fits.error());
    out.setLast(true);
    return;
  }
  auto nodes = out.initNodes(static_cast<unsigned>(update.nodes.size()));
  for (unsigned i = 0; i < update.nodes.size(); i++) write_node(nodes[i], update.nodes[i]);
  out.setLast(update.last);
}

Result<UpdateContent> read_update(wire::Update::Reader in) {
  UpdateContent update;
  for (const auto job : in.getJobs()) {
    FS_ASSIGN(ClusterJob read, read_job(job));
    update.jobs.push_back(std::move(read));
  }
  for (const auto node : in.getNodes()) update.nodes.push_back(read_node(node));
  update.last = in.getLast();
  if (in.hasError()) update.error = read_error(in.getError());
  return update;
}

}  // namespace fastserve
