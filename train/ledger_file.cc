#include "train/ledger_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace fastserve {
namespace {

constexpr uint64_t kLargest = uint64_t{4} << 30;
constexpr size_t kMostPending = size_t{64} << 20;  // what a full disk may leave in memory
constexpr uint32_t kUnknown = std::numeric_limits<uint32_t>::max();

}  // namespace

Result<std::unique_ptr<LedgerFile>> LedgerFile::open(const Path& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return errno_error("cannot open", path);
  std::unique_ptr<LedgerFile> ledger(new LedgerFile(path, fd));
  FS_ASSIGN(const std::string bytes, read_file(path, kLargest));
  FS_ASSIGN(LedgerReader reader,
            LedgerReader::open(std::as_bytes(std::span(bytes)), path.string()));
  while (const auto record = reader.next())
    std::visit([&](const auto& it) { ledger->last_incarnation_ = it.incarnation; }, *record);
  ledger->names_ = reader.names();
  ledger->end_ = reader.offset();
  ledger->cut_off_ = bytes.size() - reader.offset();
  if (ledger->cut_off_ > 0 && ::ftruncate(fd, static_cast<off_t>(reader.offset())) != 0)
    return errno_error("cannot cut off the torn end", path);
  if (ledger->end_ == 0) {
    ledger->pending_ = kLedgerMagic;
    FS_TRY(ledger->flush());
  }
  return ledger;
}

LedgerFile::~LedgerFile() { ::close(fd_); }

Status LedgerFile::begin(const LedgerBegin& begin, std::function<std::string(TrainerId)> name) {
  std::lock_guard lock(mutex_);
  begun_ = begin;
  last_incarnation_ = begin.incarnation;
  name_ = std::move(name);
  index_.clear();
  append_record(begin, pending_);
  return flush();
}

uint32_t LedgerFile::index_of(TrainerId trainer) {
  if (trainer.value >= index_.size()) index_.resize(trainer.value + 1, kUnknown);
  uint32_t& index = index_[trainer.value];
  if (index != kUnknown) return index;
  const std::string name = name_(trainer);
  const auto at = std::find(names_.begin(), names_.end(), name);
  index = static_cast<uint32_t>(at - names_.begin());
  if (at == names_.end()) {
    names_.push_back(name);
    append_name(name, pending_);
  }
  return index;
}

Status LedgerFile::append(const Commit& commit) {
  std::lock_guard lock(mutex_);
  FS_CHECK(name_);
  if (pending_.size() > kMostPending)
    return Error{ErrorCode::kResourceExhausted,
                 fmt::format("step {} is not in the ledger", commit.step.value), path_.string(),
                 "an audit will miss it"};
  step_.incarnation = begun_.incarnation;
  step_.step = commit.step;
  step_.microbatches = begun_.microbatches;
  step_.applied = commit.applied;
  step_.repeated = commit.repeated;
  step_.units.clear();
  for (const auto& [subtree, trainer] : commit.units)
    step_.units.push_back({subtree, index_of(trainer)});
  append_record(step_, pending_);
  return flush();
}

/// A write that fails half-way is written over by the next.
Status LedgerFile::flush() {
  size_t done = 0;
  while (done < pending_.size()) {
    const ssize_t n = ::pwrite(fd_, pending_.data() + done, pending_.size() - done,
                               static_cast<off_t>(end_ + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return errno_error("cannot write", path_);
    done += static_cast<size_t>(n);
  }
  end_ += done;
  pending_.clear();
  return {};
}

Status LedgerFile::sync() {
  {
    std::lock_guard lock(mutex_);
    FS_TRY(flush());
  }
  if (::fdatasync(fd_) != 0) return errno_error("cannot sync", path_);
  return {};
}

std::function<void(const Commit&)> keep_in(std::shared_ptr<LedgerFile> ledger,
                                           const LedgerBegin& begin,
                                           std::function<std::string(TrainerId)> name, Log log) {
  const auto say = [log](const Status& status) {
    log.warning("the job's ledger falls behind: " + status.error().message());
  };
  const Status begun = ledger->begin(begin, std::move(name));
  if (!begun.ok()) say(begun);
  return [ledger = std::move(ledger), say, failing = !begun.ok()](const Commit& commit) mutable {
    const Status status = ledger->append(commit);
    if (!status.ok() && !failing) say(status);
    failing = !status.ok();
  };
}

LedgerBegin beginning(const TrainSpec& spec, const TrainPlan& plan, uint64_t windows,
                      const JobState& state) {
  LedgerBegin begin;
  begin.step = {static_cast<uint64_t>(state.steps_done)};
  begin.windows = windows;
  begin.sequences = static_cast<uint32_t>(plan.sequences);
  begin.microbatches = static_cast<uint32_t>(plan.microbatches);
  begin.seed = spec.seed;
  return begin;
}

}  // namespace fastserve
