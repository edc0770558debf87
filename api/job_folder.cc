#include "api/job_folder.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "base/rng.h"
#include "train/checkpoint.h"
#include "train/ledger_audit.h"

namespace fastserve {
namespace {

Json to_json(const JobInfo& j) {
  return Json::object({{"format", 1},
                       {"id", j.id},
                       {"kind", j.kind},
                       {"model", j.model},
                       {"state", j.state},
                       {"created_unix", j.created_unix},
                       {"step", j.step},
                       {"steps", j.steps},
                       {"loss", j.loss},
                       {"validation_loss", j.validation_loss},
                       {"note", j.note},
                       {"details", j.details}});
}

Result<JobInfo> from_json(const Json& json) {
  JobInfo j;
  FS_ASSIGN(const int64_t format, json.int_or("format", 0));
  if (format != 1)
    return Error{ErrorCode::kUnsupported, fmt::format("has format {}, this build reads 1", format),
                 "job.json", "use the version of fsctl that made it"};
  FS_ASSIGN(j.id, json.string_or("id", ""));
  FS_ASSIGN(j.kind, json.string_or("kind", ""));
  FS_ASSIGN(j.model, json.string_or("model", ""));
  FS_ASSIGN(j.state, json.string_or("state", ""));
  FS_ASSIGN(j.created_unix, json.int_or("created_unix", 0));
  FS_ASSIGN(j.step, json.int_or("step", 0));
  FS_ASSIGN(j.steps, json.int_or("steps", 0));
  FS_ASSIGN(j.loss, json.double_or("loss", 0));
  FS_ASSIGN(j.validation_loss, json.double_or("validation_loss", 0));
  FS_ASSIGN(j.note, json.string_or("note", ""));
  if (const Json* details = json.find("details")) j.details = *details;
  return j;
}

Result<JobInfo> read_record(const Path& folder) {
  const Path file = folder / "job.json";
  FS_ASSIGN(const std::string text, read_file(file, 16 << 20));
  FS_ASSIGN(const Json json, Json::parse(text, file.string()));
  return from_json(json);
}

bool is_id(const std::string& text) {
  return !text.empty() && text.size() <= 32 &&
         text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

Path folder_of(const Path& root, const std::string& id) { return root / "jobs" / id; }

Error no_such_job(const Path& root, const std::string& id) {
  std::string known;
  if (auto jobs = list_jobs(root); jobs.ok())
    for (const JobInfo& j : *jobs) known += (known.empty() ? "" : ", ") + j.id;
  return {ErrorCode::kNotFound, "no such job", id,
          known.empty() ? "there are no jobs here" : "there are: " + known};
}

Result<FileLock> lock_of(const Path& folder, const std::string& id) {
  auto lock = FileLock::acquire(folder / "lock");
  if (!lock.ok() && lock.error().code == ErrorCode::kUnavailable)
    return Error{ErrorCode::kUnavailable, lock.error().what, "job " + id,
                 "wait for it, or stop that process"};
  return lock;
}

}  // namespace

Result<std::unique_ptr<JobFolder>> JobFolder::create(const Path& root, const Clock& clock,
                                                     JobInfo info) {
  info.created_unix = clock.unix_seconds();
  const uint64_t key =
      static_cast<uint64_t>(clock.now().count()) ^ (static_cast<uint64_t>(getpid()) << 40);
  for (uint64_t attempt = 0;; attempt++) {
    info.id = fmt::format("{:08x}", mix64(key + attempt) & 0xffffffff);
    if (!std::filesystem::exists(folder_of(root, info.id))) break;
  }
  const Path folder = folder_of(root, info.id);
  FS_TRY(make_directories(folder));
  FS_ASSIGN(FileLock lock, lock_of(folder, info.id));
  std::unique_ptr<JobFolder> job(new JobFolder(folder, std::move(lock), info));
  FS_TRY(job->save(info));
  return job;
}

Result<std::unique_ptr<JobFolder>> JobFolder::open(const Path& root, const std::string& id) {
  const Path folder = folder_of(root, id);
  if (!is_id(id) || !std::filesystem::exists(folder)) return no_such_job(root, id);
  FS_ASSIGN(FileLock lock, lock_of(folder, id));
  FS_ASSIGN(JobInfo info, read_record(folder));
  return std::unique_ptr<JobFolder>(new JobFolder(folder, std::move(lock), std::move(info)));
}

Status JobFolder::save(const JobInfo& info) {
  info_ = info;
  return write_file_atomically(path_ / "job.json", to_json(info).dump(2) + "\n");
}

Result<std::vector<JobInfo>> list_jobs(const Path& root) {
  std::vector<JobInfo> jobs;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(root / "jobs", error)) {
    const std::string id = entry.path().filename();
    if (!is_id(id)) continue;
    auto record = read_record(entry.path());
    JobInfo info;
    if (record.ok()) {
      info = std::move(*record);
      if (info.state == "running" && FileLock::acquire(entry.path() / "lock").ok())
        info.state = "interrupted";
    } else {
      info.id = id;
      info.state = "failed";
      info.note = record.error().message();
    }
    jobs.push_back(std::move(info));
  }
  std::sort(jobs.begin(), jobs.end(), [](const JobInfo& a, const JobInfo& b) {
    return std::pair(a.created_unix, a.id) < std::pair(b.created_unix, b.id);
  });
  return jobs;
}

std::vector<std::string> jobs_with_checkpoints(const Path& root) {
  std::vector<std::string> ids;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(root / "jobs", ignored))
    if (std::filesystem::exists(entry.path() / "checkpoints", ignored))
      ids.push_back(entry.path().filename().string());
  return ids;
}

Result<Json> audit_job(const Path& root, const std::string& id) {
  const Path folder = folder_of(root, id);
  if (!is_id(id) || !std::filesystem::exists(folder)) return no_such_job(root, id);
  FS_ASSIGN(const JobInfo info, read_record(folder));
  const Json* settings = info.details.find_set("spec");
  const Path file = folder / "ledger";
  if (settings == nullptr || !std::filesystem::exists(file))
    return Error{ErrorCode::kNotFound, "keeps no ledger", "job " + id,
                 info.kind == "train" ? "it is older than ledgers are" : "training jobs keep one"};
  FS_ASSIGN(const TrainSpec spec, TrainSpec::from_json(*settings, "job " + id));
  int64_t steps = info.step;
  if (info.state != "finished")
    steps =
        CheckpointDirectory::newest_state(folder / "checkpoints").value_or(JobState()).steps_done;
  FS_ASSIGN(const std::string bytes, read_file(file, uint64_t{4} << 30));
  FS_ASSIGN(const LedgerAudit found,
            audit(std::as_bytes(std::span(bytes)), spec, steps, 0, file.string()));
  return found.to_json();
}

Status remove_job_folder(const Path& root, const std::string& id) {
  const Path folder = folder_of(root, id);
  if (!is_id(id) || !std::filesystem::exists(folder)) return no_such_job(root, id);
  FS_ASSIGN(const FileLock lock, lock_of(folder, id));
  std::error_code error;
  std::filesystem::remove_all(folder, error);
  if (!error) return {};
  return Error{ErrorCode::kIo, "cannot delete: " + error.message(), folder.string(), ""};
}

}  // namespace fastserve
