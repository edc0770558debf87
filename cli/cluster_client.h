// fsctl as a client of a cluster: what `--cluster` means to each command.
#pragma once

#include <memory>
#include <string>

#include "cli/command.h"
#include "rpc/cluster_client.h"

namespace CLI {
class App;
}

namespace fastserve {

struct ClusterDeployRequest;  // api/duty_request.h

/// Takes $FASTSERVE_CLUSTER where --cluster is not given, and refuses commands for which a cluster
/// can do nothing: nothing runs here by mistake that was meant to run there.
Status choose_cluster(const CLI::App& app, CommandLine& line);

struct ClusterPlace {
  std::string host;
  int port = 0;
  std::string token;
};
/// Where the cluster of the command line is, with --token, $FASTSERVE_TOKEN, or the token that
/// the coordinator left in the store's folder; with no cluster given, to the coordinator that runs
/// from this store.
Result<ClusterPlace> find_cluster(const CommandLine& line);
/// Connects there.
Result<std::unique_ptr<ClusterClient>> open_cluster(const CommandLine& line);
/// For an option that means something over a cluster alone.
Error no_cluster(const char* option);

Json to_json(const ClusterJob& job);
Json to_json(const NodeStatus& node);
const char* state_name(NodeStatus::State state);

// The commands, once `line.cluster` is set. Each returns the exit code.

int run_cluster_training(const CommandLine& line, const TrainRequest& request, bool detach);
/// Waits until it serves, and says where.
int run_cluster_deployment(const CommandLine& line, const ClusterDeployRequest& request,
                           bool detach);
int run_cluster_compression(const CommandLine& line, const CompressRequest& request, bool detach);
/// Of a deployment or compression; a deployment that serves needs no following.
int follow_cluster_duty(const CommandLine& line, std::unique_ptr<ClusterClient> client,
                        const std::string& id);
int show_cluster_status(const CommandLine& line);
int list_cluster_jobs(const CommandLine& line);
int show_cluster_job(const CommandLine& line, const std::string& id);
int print_cluster_log(const CommandLine& line, const std::string& id, bool follow);
int audit_cluster_job(const CommandLine& line, const std::string& id);
/// Shows the job's progress until it ends or Ctrl-C; the job goes on either way.
int follow_cluster_job(const CommandLine& line, const std::string& id);
/// `change`: "pause", "resume" or "cancel".
int change_cluster_job(const CommandLine& line, const std::string& change, const std::string& id);

}  // namespace fastserve
