#include "train/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>

#include "base/hash.h"

namespace fastserve {
namespace {

namespace fs = std::filesystem;

constexpr int kFormat = 1;
constexpr char kPrefix[] = "step-", kUnfinished[] = ".writing-", kHeader[] = "checkpoint.json";

Error damaged(const Path& path, std::string what) {
  return {ErrorCode::kCorrupt, std::move(what), path.string(),
          "an older checkpoint is used instead"};
}

/// Writes one file of floats, synced, and describes it for the header.
Result<Json> write_floats(const Path& path, const std::vector<std::span<const float>>& pieces) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return errno_error("cannot create", path);
  Hasher128 hasher;
  uint64_t total = 0;
  Status status;
  for (const auto piece : pieces) {
    auto bytes = std::as_bytes(piece);
    hasher.update(bytes);
    total += bytes.size();
    while (!bytes.empty() && status.ok()) {
      const ssize_t n = ::write(fd, bytes.data(), std::min<size_t>(bytes.size(), 64 << 20));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0)
        status = errno_error("cannot write", path);
      else
        bytes = bytes.subspan(static_cast<size_t>(n));
    }
  }
  if (status.ok() && ::fdatasync(fd) != 0) status = errno_error("cannot sync", path);
  if (::close(fd) != 0 && status.ok()) status = errno_error("cannot close", path);
  FS_TRY(std::move(status));
  return Json::object({{"bytes", total}, {"xxh3_128", hasher.digest().hex()}});
}

Result<std::vector<float>> read_floats(const Path& path, const Json& described) {
  FS_ASSIGN(const MappedFile map, MappedFile::open(path));
  FS_ASSIGN(const int64_t bytes, described.int_or("bytes", -1));
  FS_ASSIGN(const std::string hash, described.string_or("xxh3_128", ""));
  if (static_cast<int64_t>(map.bytes().size()) != bytes || bytes % 4 != 0)
    return damaged(path, fmt::format("holds {} bytes instead of {}", map.bytes().size(), bytes));
  if (hash128(map.bytes()).hex() != hash) return damaged(path, "does not match its checksum");
  std::vector<float> floats(map.bytes().size() / sizeof(float));
  std::memcpy(floats.data(), map.bytes().data(), map.bytes().size());
  return floats;
}

Json header_json(const CheckpointHeader& header) {
  return Json::object({{"format", kFormat},
                       {"state", header.state.to_json()},
                       {"spec", header.spec.to_json()},
                       {"dataset", fmt::format("{:016x}", header.dataset_fingerprint)},
                       {"numerics", header.numerics_id},
                       {"tokenizer", header.tokenizer_json}});
}

std::string checksum(const Json& json) { return fmt::format("{:016x}", hash64(json.dump())); }

Result<Json> read_header(const Path& path) {
  FS_ASSIGN(const std::string text, read_file(path));
  FS_ASSIGN(const Json stored, Json::parse(text, path.string()));
  Json json;
  std::string promised;
  if (!stored.is_object()) return damaged(path, "is no JSON object");
  for (const auto& [key, value] : stored.as_object()) {
    if (key == "checksum" && value.is_string())
      promised = value.as_string();
    else
      json.set(key, value);
  }
  if (json.is_null() || checksum(json) != promised)
    return damaged(path, "does not match its checksum");
  FS_ASSIGN(const int64_t format, json.int_or("format", 0));
  if (format == kFormat) return json;
  return Error{ErrorCode::kUnsupported,
               fmt::format("has format {}, and this build reads {}", format, kFormat),
               path.string(), "use the version of fastserve that wrote it"};
}

/// Puts `from` in the place of `to`, which may be there already.
Status publish(const Path& from, const Path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return {};
  if (errno != EEXIST) {
    if (::rename(from.c_str(), to.c_str()) == 0) return {};
    return errno_error("cannot rename into", to);
  }
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) != 0)
    return errno_error("cannot replace", to);
  std::error_code ignored;
  fs::remove_all(from, ignored);
  return {};
}

}  // namespace

Result<std::unique_ptr<CheckpointDirectory>> CheckpointDirectory::open(const Path& directory) {
  FS_TRY(make_directories(directory));
  auto lock = FileLock::acquire(directory / "lock");
  if (!lock.ok()) {
    Error error = std::move(lock).error();
    if (error.code == ErrorCode::kUnavailable)
      error.hint = "another job trains there: stop it, or use another directory";
    return error;
  }
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory, ignored))
    if (entry.path().filename().string().starts_with(kUnfinished))
      fs::remove_all(entry.path(), ignored);
  return std::unique_ptr<CheckpointDirectory>(new CheckpointDirectory(directory, std::move(*lock)));
}

Status CheckpointDirectory::write(const CheckpointHeader& header,
                                  const std::vector<std::shared_ptr<const ShardState>>& parts,
                                  const std::vector<float>* best) {
  std::vector<std::span<const float>> weights, m, v;
  uint64_t bytes = header.tokenizer_json.size() + (best != nullptr ? best->size() * 4 : 0);
  auto sorted = parts;
  std::sort(sorted.begin(), sorted.end(),
            [](const auto& a, const auto& b) { return a->offset < b->offset; });
  for (const auto& part : sorted) {
    weights.push_back(part->weights);
    m.push_back(part->m);
    v.push_back(part->v);
    bytes += part->weights.size() * 12;
  }
  FS_TRY(require_free_space(path_, bytes));
  return write(header, [&](const Path& folder, Json& json) -> Status {
    Json files;
    FS_ASSIGN(Json described, write_floats(folder / "weights.f32", weights));
    files.set("weights.f32", std::move(described));
    FS_ASSIGN(described, write_floats(folder / "adam_m.f32", m));
    files.set("adam_m.f32", std::move(described));
    FS_ASSIGN(described, write_floats(folder / "adam_v.f32", v));
    files.set("adam_v.f32", std::move(described));
    if (best != nullptr) {
      FS_ASSIGN(described, write_floats(folder / "best.f32", {*best}));
      files.set("best.f32", std::move(described));
    }
    json.set("files", std::move(files));
    return {};
  });
}

Status CheckpointDirectory::write(const CheckpointHeader& header, const PieceSet& pieces) {
  return write(header, [&](const Path&, Json& json) -> Status {
    json.set("pieces", pieces.to_json());
    return {};
  });
}

Status CheckpointDirectory::write(const CheckpointHeader& header,
                                  const std::function<Status(const Path&, Json&)>& files) {
  const std::string name = fmt::format("{}{:09}", kPrefix, header.state.steps_done);
  const Path tmp = path_ / (kUnfinished + name);
  FS_TRY(make_directories(tmp));
  const auto write_all = [&]() -> Status {
    Json json = header_json(header);
    FS_TRY(files(tmp, json));
    json.set("checksum", checksum(json));
    FS_TRY(write_file_atomically(tmp / kHeader, json.dump(2)));
    FS_TRY(publish(tmp, path_ / name));
    return sync_directory(path_);
  };
  const Status status = write_all();
  std::error_code ignored;
  if (!status.ok()) {
    fs::remove_all(tmp, ignored);
    return status;
  }
  const std::vector<Path> all = list(path_);
  for (size_t i = static_cast<size_t>(header.spec.keep_checkpoints); i < all.size(); i++)
    fs::remove_all(all[i], ignored);
  return {};
}

bool CheckpointDirectory::holds_any(const Path& directory) { return !list(directory).empty(); }

std::vector<Path> CheckpointDirectory::list(const Path& directory) {
  std::vector<Path> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory, ignored))
    if (entry.path().filename().string().starts_with(kPrefix)) found.push_back(entry.path());
  std::sort(found.begin(), found.end(), std::greater<>());
  return found;
}

std::optional<JobState> CheckpointDirectory::newest_state(const Path& directory) {
  for (const Path& path : list(directory)) {
    const auto json = read_header(path / kHeader);
    const Json* described = json.ok() ? json->find("state") : nullptr;
    if (described == nullptr) continue;
    if (auto state = JobState::from_json(*described, path.string()); state.ok()) return *state;
  }
  return std::nullopt;
}

Result<Checkpoint> CheckpointDirectory::load(const Path& path) {
  FS_ASSIGN(const Json json, read_header(path / kHeader));
  const std::string where = (path / kHeader).string();
  Checkpoint checkpoint;
  checkpoint.path = path;
  const Json none;
  const auto member = [&](const char* key) -> const Json& {
    const Json* found = json.find(key);
    return found != nullptr ? *found : none;
  };
  FS_ASSIGN(checkpoint.header.state, JobState::from_json(member("state"), where));
  FS_ASSIGN(checkpoint.header.spec, TrainSpec::from_json(member("spec"), where));
  FS_ASSIGN(checkpoint.header.tokenizer_json, json.string_or("tokenizer", ""));
  FS_ASSIGN(checkpoint.header.numerics_id, json.string_or("numerics", ""));
  FS_ASSIGN(const std::string dataset, json.string_or("dataset", "0"));
  checkpoint.header.dataset_fingerprint = std::strtoull(dataset.c_str(), nullptr, 16);
  if (const Json* pieces = json.find_set("pieces")) {
    FS_ASSIGN(checkpoint.pieces, PieceSet::from_json(*pieces, where));
    return checkpoint;
  }
  const Json& files = member("files");
  const auto read = [&](const char* name) -> Result<std::vector<float>> {
    const Json* described = files.find(name);
    if (described == nullptr) return damaged(path / name, "is not listed in the header");
    return read_floats(path / name, *described);
  };
  FS_ASSIGN(checkpoint.weights, read("weights.f32"));
  FS_ASSIGN(checkpoint.m, read("adam_m.f32"));
  FS_ASSIGN(checkpoint.v, read("adam_v.f32"));
  if (files.find("best.f32") != nullptr) {
    FS_ASSIGN(checkpoint.best, read("best.f32"));
  }
  const size_t n = checkpoint.weights.size();
  if (checkpoint.m.size() != n || checkpoint.v.size() != n ||
      (!checkpoint.best.empty() && checkpoint.best.size() != n))
    return damaged(path, "holds weights and optimiser state of unlike sizes");
  return checkpoint;
}

std::optional<Checkpoint> CheckpointDirectory::newest(const Log& log) const {
  for (const Path& path : list(path_)) {
    auto checkpoint = load(path);
    if (checkpoint.ok()) return std::move(*checkpoint);
    log.warning("a damaged checkpoint is passed over: " + checkpoint.error().message());
  }
  return std::nullopt;
}

std::vector<std::pair<uint64_t, int64_t>> CheckpointDirectory::kept_pieces() const {
  std::vector<std::pair<uint64_t, int64_t>> kept;
  for (const Path& path : list(path_)) {
    const auto json = read_header(path / kHeader);
    const Json* pieces = json.ok() ? json->find_set("pieces") : nullptr;
    if (pieces == nullptr) continue;
    if (const auto set = PieceSet::from_json(*pieces, path.string()); set.ok())
      kept.emplace_back(set->incarnation, set->step);
  }
  return kept;
}

Error needs_its_nodes(const PieceSet& pieces, const Path& checkpoint) {
  std::set<std::string> nodes;
  for (const PieceSet::Piece& piece : pieces.pieces)
    nodes.insert(piece.holders.begin(), piece.holders.end());
  return {ErrorCode::kUnsupported,
          fmt::format("lies in pieces on the nodes of its cluster ({})", fmt::join(nodes, ", ")),
          checkpoint.string(),
          "go on there: fsctl jobs resume JOB --cluster HOST:PORT; with --checkpoints coordinator "
          "its next checkpoint lies on one disk"};
}

Error data_changed(const std::string& where) {
  return {ErrorCode::kInvalidArgument,
          "is not the data that the job was trained on: its tokens have changed since", where,
          "put the data back as it was, or start a new job"};
}

Status check_resumable(const CheckpointHeader& saved, const TrainSpec& spec,
                       uint64_t dataset_fingerprint) {
  const auto differs = [](const char* field) {
    return Error{ErrorCode::kInvalidArgument, "is not what the checkpoint was trained with", field,
                 "use the same value, or start a new job"};
  };
  const TrainSpec& old = saved.spec;
  if (!(old.model.to_json() == spec.model.to_json())) return differs("model");
  if (old.block != spec.block) return differs("block");
  if (old.batch * old.accumulation != spec.batch * spec.accumulation) return differs("batch");
  if (old.microbatches != spec.microbatches) return differs("microbatches");
  if (old.precision != spec.precision) return differs("precision");
  if (old.seed != spec.seed) return differs("seed");
  if (old.consistency.local() != spec.consistency.local()) return differs("consistency");
  if (saved.dataset_fingerprint != dataset_fingerprint) return data_changed("data");
  return {};
}

}  // namespace fastserve
