// A job's ledger on disk, as the job writes it.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/log.h"
#include "train/ledger_format.h"

namespace fastserve {

/// Appends what becomes of each step.
///
/// Owns:     the file. Whoever holds the job's checkpoints is alone with it.
/// Threads:  any.
/// Promises: one write a step, none of them waited for by the disk: after a crash the last ones may
///           be missing or torn, and open() cuts off what is. What the disk refused is written with
///           a later step.
class LedgerFile {
 public:
  /// Creates it when it is not there. kCorrupt: the file is something else.
  static Result<std::unique_ptr<LedgerFile>> open(const Path& path);
  ~LedgerFile();
  LedgerFile(const LedgerFile&) = delete;
  LedgerFile& operator=(const LedgerFile&) = delete;

  uint64_t last_incarnation() const { return last_incarnation_; }  ///< 0: none yet
  size_t cut_off() const { return cut_off_; }                      ///< bytes, when it was opened

  /// Steps from now on belong to this incarnation. `name` says whose work it was.
  Status begin(const LedgerBegin& begin, std::function<std::string(TrainerId)> name);
  /// Requires begin().
  Status append(const Commit& commit);
  /// Returns once the disk has it all: before a checkpoint is written that counts on it.
  Status sync();

 private:
  LedgerFile(Path path, int fd) : path_(std::move(path)), fd_(fd) {}
  uint32_t index_of(TrainerId trainer);
  Status flush();

  const Path path_;
  const int fd_;
  std::mutex mutex_;
  size_t end_ = 0, cut_off_ = 0;
  uint64_t last_incarnation_ = 0;
  LedgerBegin begun_;
  std::function<std::string(TrainerId)> name_;
  std::vector<std::string> names_;
  std::vector<uint32_t> index_;  // by trainer, of this incarnation
  LedgerStep step_;
  std::string pending_;  // not in the file yet
};

/// Begins, and takes each commit; the first of several that the disk refuses is a warning.
std::function<void(const Commit&)> keep_in(std::shared_ptr<LedgerFile> ledger,
                                           const LedgerBegin& begin,
                                           std::function<std::string(TrainerId)> name, Log log);

/// Of a job that goes on from `state`; the incarnation is left open.
LedgerBegin beginning(const TrainSpec& spec, const TrainPlan& plan, uint64_t windows,
                      const JobState& state);

}  // namespace fastserve
