// What a cluster's coordinator does for those who operate it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace fastserve {

/// What the holder of an access token may do; each role may do what those before it may.
enum class AccessRole : uint8_t { kRead, kRun, kAdmin };

/// A node as the coordinator sees it.
struct NodeStatus {
  enum class State : uint8_t { kReady, kDraining, kSilent, kGone };
  std::string name, address;       ///< address: where peers reach its bulk lane
  std::vector<std::string> roles;  ///< "trainer", "parameter-server", "compressor", "server"
  State state = State::kReady;
  int lanes = 0;
  std::string version, device, numerics_id;
  int64_t joined_unix = 0, last_heard_unix = 0;
  double clock_skew_seconds = 0;  ///< its clock minus ours
  std::string note;               ///< why it is silent, gone or not used
  // Of the job it works in, if any:
  std::string job;
  double share = 0;  ///< of the step's microbatches
  double tokens_per_second = 0, bytes_per_second = 0;
};

/// A job as the coordinator sees it. Deployments and compressions have no steps.
struct ClusterJob {
  std::string kind = "train";  ///< train, deploy, compress
  std::string id, model,
      state;  ///< waiting, running, paused, interrupted, finished, failed, cancelled
  int64_t created_unix = 0, step = 0, steps = 0;
  double loss = 0, validation_loss = 0, tokens_per_second = 0, eta_seconds = 0;
  uint64_t incarnation = 0;  ///< times it was started or restarted from a checkpoint
  int64_t replayed_steps = 0;
  std::string note;
  Json details;
};

/// What becomes of a stored model, without touching its content.
enum class ModelChange : uint8_t { kPoint, kTag, kUntag, kRename, kRemove };

/// Threads: any, several at a time.
/// Errors:  kNotFound names the thing and what there is; kInvalidArgument a request that cannot be;
///          kUnavailable while the coordinator is starting or stopping.
class ClusterControl {
 public:
  virtual ~ClusterControl() = default;

  virtual Result<std::vector<NodeStatus>> nodes() = 0;
  /// Gives the node no new work and moves what it holds elsewhere; undone by `drain` false.
  virtual Status drain(const std::string& node, bool drain) = 0;
  /// Forgets the node: its certificate is refused from now on.
  virtual Status remove(const std::string& node) = 0;

  /// Starts a job from the settings of `fsctl train` (a TrainRequest as JSON; paths are the
  /// coordinator's). Answers the job's id once the data has been read.
  virtual Result<std::string> train(const Json& request) = 0;
  virtual Result<std::vector<ClusterJob>> jobs() = 0;
  virtual Result<ClusterJob> job(const std::string& id) = 0;
  virtual Status pause(const std::string& id) = 0;   ///< writes a checkpoint and frees the nodes
  virtual Status resume(const std::string& id) = 0;  ///< a paused or interrupted job
  virtual Status cancel(const std::string& id) = 0;
  /// Forgets a job and deletes its checkpoints. kUnavailable while it runs or waits to.
  virtual Status remove_job(const std::string& id) = 0;
  /// Lines of the job's log from line `from` (0: the first) on, at most `most`.
  virtual Result<std::vector<std::string>> log(const std::string& id, uint64_t from, int most) = 0;
  /// Proves from the job's ledger that each sample counted once an epoch: figures, or kCorrupt.
  virtual Result<Json> audit(const std::string& id) = 0;

  /// A token with which a client may use this interface, or a node may join.
  virtual Result<std::string> make_access_token(AccessRole role, const std::string& label,
                                                int64_t lifetime_seconds) = 0;
  virtual Result<std::string> make_join_token(int64_t lifetime_seconds) = 0;
  /// Every token, as describe_token() tells of it: without what lets one in.
  virtual Result<Json> tokens() = 0;
  /// Nobody comes in by it any more; connections that are open stay.
  virtual Status revoke_token(const std::string& id) = 0;

  /// Versions in the coordinator's store, as model_row() tells of them: the one that is meant by
  /// "name", "name@3" or "name@tag"; with an empty text all.
  virtual Result<Json> models(const std::string& model) = 0;
  /// `to`: the tag, or the new name. Answers the bytes freed, of kRemove.
  virtual Result<uint64_t> change_model(ModelChange change, const std::string& model,
                                        const std::string& to) = 0;
  /// Reads and checks every byte of it. `progress` is told now and then how far that is, from 0 to
  /// 1; it may be empty.
  virtual Status verify_model(const std::string& model,
                              const std::function<void(double)>& progress) = 0;

  /// Gives the model to a node that serves it until the job is cancelled; the job's id. `request`:
  /// see deploy() in schema/cluster.capnp.
  virtual Result<std::string> deploy(const Json& request) = 0;
  /// Lets a node compress it; the job's id.
  virtual Result<std::string> compress(const Json& request) = 0;

  virtual Json status() = 0;  ///< cluster id, epoch, version, uptime, counts
};

}  // namespace fastserve
