// Between the messages of schema/cluster.capnp and the types of cluster/control.h.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cluster/control.h"
#include "rpc/messages.h"
#include "schema/cluster.capnp.h"

namespace fastserve {

wire::Role write_role(AccessRole role);
/// A role that this build does not know may do what the least may.
AccessRole read_role(wire::Role role);

wire::ModelChange write_model_change(ModelChange change);
/// kUnsupported for one that this build does not know.
Result<ModelChange> read_model_change(wire::ModelChange change);

/// A list of models as a text that fits into a message: without details where it must be, and
/// kResourceExhausted when even so it does not.
Result<std::string> text_that_fits(Json models);

void write_node(wire::Node::Builder out, const NodeStatus& node);
NodeStatus read_node(wire::Node::Reader in);

void write_job(wire::Job::Builder out, const ClusterJob& job, bool with_details = true);
/// kCorrupt when `details` is no JSON.
Result<ClusterJob> read_job(wire::Job::Reader in);

/// What one Update says.
struct UpdateContent {
  std::vector<ClusterJob> jobs;
  std::vector<NodeStatus> nodes;
  bool last = false;
  std::optional<Error> error;
};
void write_update(wire::Update::Builder out, const UpdateContent& update);
Result<UpdateContent> read_update(wire::Update::Reader in);

/// Bytes of a message that are left for what it carries.
inline constexpr uint64_t kMostContentBytes = uint64_t{3} << 20;
uint64_t job_bytes(const ClusterJob& job, bool with_details);

/// Writes the list, without details where those would not fit into a message. kResourceExhausted
/// when even so it does not.
template <class Results>
Status write_jobs(Results& results, const std::vector<ClusterJob>& jobs) {
  uint64_t full = 0, bare = 0;
  for (const ClusterJob& job : jobs) {
    full += job_bytes(job, true);
    bare += job_bytes(job, false);
  }
  if (bare > kMostContentBytes)
    return Error{ErrorCode::kResourceExhausted,
                 "are more than fit into a message: " + std::to_string(jobs.size()), "jobs",
                 "ask for one by its id"};
  auto list = results.initJobs(static_cast<unsigned>(jobs.size()));
  for (unsigned i = 0; i < jobs.size(); i++) write_job(list[i], jobs[i], full <= kMostContentBytes);
  return {};
}

}  // namespace fastserve
