// What the disk remembers of a job: root/jobs/ID/job.json beside its checkpoints.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/node.h"

namespace fastserve {

/// One job's folder, held by the process that runs it.
///
/// Owns:     the folder's lock; a folder whose lock is free and whose record says "running"
/// belonged
///           to a process that died, and reads as "interrupted".
/// Threads:  one caller at a time.
class JobFolder {
 public:
  /// A new folder with a fresh id.
  static Result<std::unique_ptr<JobFolder>> create(const Path& root, const Clock& clock,
                                                   JobInfo info);
  /// An existing one, to go on with. kNotFound lists the ids there are; kUnavailable: it is
  /// running.
  static Result<std::unique_ptr<JobFolder>> open(const Path& root, const std::string& id);

  const JobInfo& info() const { return info_; }
  Path path() const { return path_; }
  Path checkpoints() const { return path_ / "checkpoints"; }
  static Path checkpoints_of(const Path& root, const std::string& id) {
    return root / "jobs" / id / "checkpoints";
  }
  Path ledger() const { return path_ / "ledger"; }
  /// Replaces the record atomically.
  Status save(const JobInfo& info);

 private:
  JobFolder(Path path, FileLock lock, JobInfo info)
      : path_(std::move(path)), lock_(std::move(lock)), info_(std::move(info)) {}
  Path path_;
  FileLock lock_;
  JobInfo info_;
};

/// Every job below `root`, oldest first. A record that cannot be read is listed as failed with the
/// reason.
Result<std::vector<JobInfo>> list_jobs(const Path& root);
/// Ids of those that have checkpoints to go on from, or may yet have.
std::vector<std::string> jobs_with_checkpoints(const Path& root);
/// Proves from a training job's ledger that each sample counted once an epoch, up to its last
/// checkpoint or its end: figures (see LedgerAudit). kCorrupt names the first step that does not
/// hold; kNotFound, too, when there is no ledger. The job may be running.
Result<Json> audit_job(const Path& root, const std::string& id);
/// kNotFound, or kUnavailable while it runs.
Status remove_job_folder(const Path& root, const std::string& id);

}  // namespace fastserve
