// A job's state on disk, from which it goes on as if it had never stopped.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/log.h"
#include "train/checkpoint_pieces.h"
#include "train/job.h"

namespace fastserve {

/// Everything that decides the rest of a job. Data order, learning rate and random numbers are
/// functions of the settings and the step, so none of them needs a state of its own.
struct CheckpointHeader {
  TrainSpec spec;
  JobState state;
  std::string tokenizer_json;  ///< may be empty
  uint64_t dataset_fingerprint = 0;
  std::string numerics_id;  ///< of the devices that computed it
};

struct Checkpoint {
  CheckpointHeader header;
  std::optional<PieceSet> pieces;    ///< set: the floats lie on other nodes, and none are here
  std::vector<float> weights, m, v;  ///< flat, all elements
  std::vector<float> best;           ///< weights of the best evaluation; empty when there was none
  Path path;
};

/// Checkpoints of one job: DIR/step-000000250/ with checkpoint.json and the floats beside it, or
/// with a list of the pieces that nodes hold.
///
/// Owns:     the directory, under a lock (kUnavailable while another process trains there).
/// Threads:  one caller at a time, any thread.
/// Promises: a checkpoint is whole or not there, whatever is killed when: it is written under
/// another
///           name, synced and renamed. The last spec.keep_checkpoints are kept, each with the best
///           weights so far.
class CheckpointDirectory {
 public:
  /// Creates the directory when it is not there; removes what a crash left half-written.
  static Result<std::unique_ptr<CheckpointDirectory>> open(const Path& directory);

  /// `parts` cover all elements. kResourceExhausted before anything is written when space is short.
  Status write(const CheckpointHeader& header,
               const std::vector<std::shared_ptr<const ShardState>>& parts,
               const std::vector<float>* best);
  /// Names a checkpoint whose pieces are all where they are to be.
  Status write(const CheckpointHeader& header, const PieceSet& pieces);

  /// The newest one whose checksums hold; damaged ones are passed over with a warning that names
  /// them. Nothing when there is none.
  std::optional<Checkpoint> newest(const Log& log) const;

  /// Whether there is any checkpoint in `directory`, whole or damaged.
  static bool holds_any(const Path& directory);

  /// Where the newest one stands whose header holds; its floats are not looked at.
  static std::optional<JobState> newest_state(const Path& directory);

  /// kCorrupt names the file that is damaged.
  static Result<Checkpoint> load(const Path& checkpoint);
  /// Whole ones and damaged ones, newest first.
  std::vector<Path> all() const { return list(path_); }
  /// The checkpoints in pieces that are kept, as (incarnation, step).
  std::vector<std::pair<uint64_t, int64_t>> kept_pieces() const;

  const Path& path() const { return path_; }

 private:
  CheckpointDirectory(Path path, FileLock lock) : path_(std::move(path)), lock_(std::move(lock)) {}
  static std::vector<Path> list(const Path& directory);  // newest first
  /// `files`: writes them into the folder that it is given, and describes them.
  Status write(const CheckpointHeader& header,
               const std::function<Status(const Path& folder, Json& header)>& files);

  Path path_;
  FileLock lock_;
};

/// Whether a job with these settings may go on from `saved`: kInvalidArgument names the first
/// setting that contradicts it. Lengths, learning rates and evaluations may change.
Status check_resumable(const CheckpointHeader& saved, const TrainSpec& spec,
                       uint64_t dataset_fingerprint);
/// The error for a job that is to go on in one process, and has left its checkpoint on `pieces`'
/// nodes.
Error needs_its_nodes(const PieceSet& pieces, const Path& checkpoint);
/// The error for other data than the job began with; `where` names it.
Error data_changed(const std::string& where);

}  // namespace fastserve
