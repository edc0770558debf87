#include "api/cluster_jobs.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <future>

#include "api/job_folder.h"
#include "train/checkpoint.h"

namespace fastserve {
namespace {

constexpr const char* kPrefix = "jobs/wanted/";
constexpr const char* kLogFile = "log.txt";

const char* name_of(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    default:
      return "error";
  }
}

/// "local:16": how the job's nodes are held together, when not step by step.
std::string apart(const JobInfo& info) {
  const Json* spec = info.details.find_set("spec");
  const auto text = spec == nullptr ? Result<std::string>("") : spec->string_or("consistency", "");
  return text.ok() && *text != "exact" ? *text : "";
}

/// "replicas 0 of 1": how often each shard is held beside the first time, when it is to be.
std::string copies(const JobInfo& info, int now) {
  const Json* spec = info.details.find_set("spec");
  const auto wanted = spec == nullptr ? Result<int64_t>(0) : spec->int_or("replicas", 0);
  return wanted.ok() && *wanted > 0 ? fmt::format("replicas {} of {}", now, *wanted) : "";
}

/// Writes to the job's own file what it says, and passes it on.
class JobLog {
 public:
  explicit JobLog(Log other) : other_(std::move(other)) {}

  /// The last warning, while it is news.
  std::string trouble() const {
    constexpr Nanoseconds kNews = std::chrono::seconds(60);
    std::lock_guard lock(mutex_);
    return trouble_.empty() || clock_.now() - troubled_ > kNews ? "" : trouble_;
  }

  void open(const Path& file) {
    std::lock_guard lock(mutex_);
    out_.open(file, std::ios::app);
    for (const std::string& line : early_) out_ << line;
    early_.clear();
    out_.flush();
  }

  void write(LogLevel level, std::string_view text) {
    const std::string line =
        fmt::format("{:%Y-%m-%dT%H:%M:%SZ} {} {}\n", fmt::gmtime(SystemClock().unix_seconds()),
                    name_of(level), text);
    {
      std::lock_guard lock(mutex_);
      if (out_.is_open())
        out_ << line << std::flush;
      else
        early_.push_back(line);
      if (level >= LogLevel::kWarning) {
        trouble_ = text;
        troubled_ = clock_.now();
      }
    }
    if (level == LogLevel::kWarning)
      other_.warning(text);
    else if (level == LogLevel::kError)
      other_.error(text);
    else
      other_.info(text);
  }

 private:
  Log other_;
  const SystemClock clock_;
  mutable std::mutex mutex_;
  std::string trouble_;
  Nanoseconds troubled_{0};
  std::ofstream out_;
  std::vector<std::string> early_;  // before the job had a folder
};

}  // namespace

struct ClusterJobs::Running {
  explicit Running(const Log& log) : log(log) {}
  JobLog log;
  std::thread thread;
  CancelFlag cancel;
  std::promise<Result<std::string>> begun;  // the id
  bool told = false;                        // begun has been set; the job's thread alone
  std::atomic<bool> ended{false};
  std::string id;  // guarded by the jobs' mutex, like what follows
  TrainUpdate last;
  ClusterRun run;
};

ClusterJobs::~ClusterJobs() {
  for (const auto& running : all_) running->thread.join();
}

void ClusterJobs::reap() {
  std::vector<std::shared_ptr<Running>> gone;
  {
    std::lock_guard lock(mutex_);
    std::erase_if(all_, [&](const auto& running) {
      if (!running->ended) return false;
      gone.push_back(running);
      return true;
    });
    std::erase_if(running_, [](const auto& entry) { return entry.second->ended.load(); });
  }
  for (const auto& running : gone) running->thread.join();
}

Status ClusterJobs::want(const std::string& id, Wanted wanted) {
  const char* texts[] = {"running", "paused", "cancelled"};
  return around_.state->write({{kPrefix + id, texts[static_cast<int>(wanted)]}});
}

ClusterJobs::Wanted ClusterJobs::wanted(const std::string& id) const {
  const auto text = around_.state->get(kPrefix + id);
  if (!text.ok() || !*text) return Wanted::kRunning;
  return **text == "paused" ? Wanted::kPaused
                            : (**text == "cancelled" ? Wanted::kCancelled : Wanted::kRunning);
}

Status ClusterJobs::take_up() {
  FS_ASSIGN(const auto records, around_.state->list(kPrefix));
  FS_ASSIGN(const auto known, list_jobs(around_.options.root));
  for (const JobInfo& info : known) {
    const bool recorded = std::any_of(records.begin(), records.end(), [&](const auto& record) {
      return record.first == kPrefix + info.id && record.second == "running";
    });
    if (!recorded || info.state != "interrupted") continue;
    TrainRequest request;
    request.resume = info.id;
    const auto begun = begin(std::move(request));
    if (!begun.ok()) around_.options.log.warning(begun.error().message());
  }
  return {};
}

Result<std::string> ClusterJobs::train(const TrainRequest& request) {
  if (!request.resume.empty()) {
    FS_TRY(resume(request.resume));
    return request.resume;
  }
  return begin(request);
}

Result<std::string> ClusterJobs::begin(TrainRequest request) {
  reap();
  auto running = std::make_shared<Running>(around_.options.log);
  auto begun = running->begun.get_future();
  {
    std::lock_guard lock(mutex_);
    if (!request.resume.empty() && running_.contains(request.resume))
      return Error{ErrorCode::kAlreadyExists, "runs already", "job " + request.resume, ""};
    all_.push_back(running);
    running->thread =
        std::thread([this, running, request = std::move(request)] { run(running, request); });
  }
  return begun.get();
}

void ClusterJobs::run(const std::shared_ptr<Running>& running, const TrainRequest& request) {
  NodeOptions options = around_.options;
  options.log =
      Log([running](LogLevel level, std::string_view line) { running->log.write(level, line); });
  const auto engine = [&](TrainingSystem::Config config,
                          const std::string& id) -> Result<TrainOutcome> {
    running->log.open(around_.options.root / "jobs" / id / kLogFile);
    FS_TRY(want(id, Wanted::kRunning));
    {
      std::lock_guard lock(mutex_);
      running->id = id;
      running_[id] = running;
    }
    running->told = true;
    running->begun.set_value(id);
    auto outcome = around_.coordinator->train(std::move(config), id, [&](const ClusterRun& now) {
      std::lock_guard lock(mutex_);
      running->run = now;
    });
    // Its checkpoints are on disks that are not there: that is for people to mend.
    if (!outcome.ok() && outcome.error().code == ErrorCode::kNotFound)
      FS_TRY(want(id, Wanted::kPaused));
    return outcome;
  };
  LocalNode node(options, around_.isa, engine, around_.store);
  const auto progress = [&](const TrainUpdate& update) {
    std::lock_guard lock(mutex_);
    running->last = update;
  };
  const auto result = node.train(request, progress, running->cancel);
  if (result.ok())
    options.log.info(fmt::format("job {} has finished: {}", result->job, result->model.text()));
  else
    options.log.warning(result.error().message());
  // Of a job that goes on no more nothing is left on nodes' disks.
  if (running->told &&
      !CheckpointDirectory::holds_any(JobFolder::checkpoints_of(around_.options.root, running->id)))
    around_.coordinator->forget_pieces(running->id);
  if (!running->told)
    running->begun.set_value(result.ok() ? Result<std::string>(result->job)
                                         : Result<std::string>(result.error()));
  running->ended = true;
}

ClusterJob ClusterJobs::described(const JobInfo& info) {
  ClusterJob job;
  job.id = info.id;
  job.model = info.model;
  job.state = info.state;
  job.created_unix = info.created_unix;
  job.step = info.step;
  job.steps = info.steps;
  job.loss = info.loss;
  job.validation_loss = info.validation_loss;
  job.note = info.note;
  job.details = info.details;
  if (job.note.empty()) job.note = apart(info);
  if (job.state == "interrupted" && wanted(info.id) == Wanted::kPaused) job.state = "paused";
  if (job.state == "interrupted" && wanted(info.id) == Wanted::kCancelled) job.state = "cancelled";
  std::lock_guard lock(mutex_);
  const auto it = running_.find(info.id);
  if (it == running_.end()) return job;
  const Running& now = *it->second;
  job.incarnation = now.run.incarnation;
  job.replayed_steps = now.run.replayed_steps;
  if (now.ended) return job;
  job.state = now.run.waiting_for.empty() ? "running" : "waiting";
  if (!now.run.waiting_for.empty())
    job.note = "waits for " + now.run.waiting_for;
  else if (const std::string trouble = now.log.trouble(); !trouble.empty())
    job.note = trouble;
  if (const std::string held = copies(info, now.run.replicas);
      !held.empty() && now.run.waiting_for.empty())
    job.note = job.note.empty() ? held : held + "; " + job.note;
  if (now.last.steps == 0) return job;
  job.step = now.last.step;
  job.steps = now.last.steps;
  job.loss = now.last.loss;
  job.validation_loss = now.last.validation_loss;
  job.tokens_per_second = now.last.tokens_per_second;
  job.eta_seconds = now.last.eta_seconds;
  return job;
}

Result<std::vector<ClusterJob>> ClusterJobs::jobs() {
  FS_ASSIGN(const auto infos, list_jobs(around_.options.root));
  std::vector<ClusterJob> all;
  for (const JobInfo& info : infos)
    if (info.kind == "train") all.push_back(described(info));
  return all;
}

Result<ClusterJob> ClusterJobs::job(const std::string& id) {
  FS_ASSIGN(const auto all, jobs());
  std::string known;
  for (const ClusterJob& job : all) {
    if (job.id == id) return job;
    known += (known.empty() ? "" : ", ") + job.id;
  }
  return Error{ErrorCode::kNotFound, "no such job", id,
               known.empty() ? "there are no jobs here" : "there are: " + known};
}

Status ClusterJobs::stop(const std::string& id, Wanted wanted) {
  FS_ASSIGN(const ClusterJob found, job(id));
  if (found.state == "finished")
    return Error{ErrorCode::kInvalidArgument, "has finished", "job " + id, ""};
  FS_TRY(want(id, wanted));
  std::lock_guard lock(mutex_);
  const auto it = running_.find(id);
  if (it != running_.end()) it->second->cancel.raise();
  return {};
}

Status ClusterJobs::pause(const std::string& id) { return stop(id, Wanted::kPaused); }
Status ClusterJobs::cancel(const std::string& id) { return stop(id, Wanted::kCancelled); }

/// Whatever of the job lies on a disk, here and on nodes; one that is away hears when it comes.
Status ClusterJobs::delete_files(const std::string& id) const {
  FS_TRY(remove_job_folder(around_.options.root, id));
  around_.coordinator->forget_pieces(id);
  return {};
}

Status ClusterJobs::remove(const std::string& id) {
  FS_ASSIGN(const ClusterJob found, job(id));
  reap();
  {
    std::lock_guard lock(mutex_);
    if (running_.contains(id))
      return Error{ErrorCode::kUnavailable, "is " + found.state, "job " + id,
                   "fsctl jobs cancel ends it"};
  }
  FS_TRY(delete_files(id));  // refused when it is taken up meanwhile: the folder is locked then
  return around_.state->write({{kPrefix + id, std::nullopt}});
}

Status ClusterJobs::resume(const std::string& id) {
  FS_TRY(job(id));
  TrainRequest request;
  request.resume = id;
  const auto begun = begin(std::move(request));
  return begun.ok() ? Status() : Status(begun.error());
}

Result<std::vector<std::string>> ClusterJobs::log(const std::string& id, uint64_t from, int most) {
  FS_TRY(job(id));
  std::ifstream in(around_.options.root / "jobs" / id / kLogFile);
  std::vector<std::string> lines;
  std::string line;
  for (uint64_t at = 0; static_cast<int>(lines.size()) < most && std::getline(in, line); at++)
    if (at >= from) lines.push_back(line);
  return lines;
}

}  // namespace fastserve
