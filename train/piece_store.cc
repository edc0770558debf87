#include "train/piece_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>

#include "base/hash.h"

namespace fastserve {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little);

/// Before the floats: weights, m, v and perhaps the best. After them: the hash of all before it.
struct Header {
  char magic[8];
  uint64_t incarnation, step, begin, end;
  uint64_t runs;  // of floats: 3 or 4
};
static_assert(sizeof(Header) == 48);

constexpr char kMagic[8] = {'F', 'S', 'P', 'I', 'E', 'C', 'E', '1'};
constexpr char kUnfinished[] = ".writing-", kEnding[] = ".piece", kStep[] = "step-";
constexpr uint64_t kMostElements = uint64_t{1} << 40;

Error damaged(std::string what, const std::string& where) {
  return {ErrorCode::kCorrupt, std::move(what), where,
          "its copy on another node is used, or an older checkpoint"};
}

bool is_job(const std::string& text) {
  const auto fits = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-';
  };
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), fits);
}

std::optional<uint64_t> number(std::string_view text, int base) {
  uint64_t value = 0;
  const auto end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value, base);
  if (text.empty() || error != std::errc() || at != end) return std::nullopt;
  return value;
}

/// "LEFT-RIGHT"
std::optional<std::pair<uint64_t, uint64_t>> pair_of(std::string_view text, int right_base) {
  const size_t dash = text.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const auto left = number(text.substr(0, dash), 10);
  const auto right = number(text.substr(dash + 1), right_base);
  if (!left || !right) return std::nullopt;
  return std::pair(*left, *right);
}

/// (incarnation, step) of a checkpoint's folder.
std::optional<std::pair<uint64_t, int64_t>> set_of(const std::string& folder) {
  if (!folder.starts_with(kStep)) return std::nullopt;
  const auto found = pair_of(std::string_view(folder).substr(sizeof kStep - 1), 16);
  if (!found) return std::nullopt;
  return std::pair(found->second, static_cast<int64_t>(found->first));
}

std::span<const std::byte> bytes_of(const Hash128& hash) {
  return std::as_bytes(std::span(&hash, 1));
}

Status write_all(int fd, std::span<const std::byte> bytes, const Path& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), std::min<size_t>(bytes.size(), 64 << 20));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error("cannot write", path);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return {};
}

}  // namespace

Result<Piece> parse_piece(std::span<const std::byte> bytes, const std::string& hash,
                          const std::string& where) {
  Header header;
  Hash128 promised;
  if (bytes.size() < sizeof header + sizeof promised)
    return damaged(fmt::format("holds {} bytes, and is no piece of a checkpoint", bytes.size()),
                   where);
  std::memcpy(&header, bytes.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    return damaged("is no piece of a checkpoint", where);
  const bool sound = header.begin < header.end && header.end <= kMostElements &&
                     (header.runs == 3 || header.runs == 4) && header.step < uint64_t{1} << 62;
  if (!sound) return damaged("says of itself what cannot be", where);
  const uint64_t n = header.end - header.begin;
  const uint64_t whole = sizeof header + header.runs * n * sizeof(float) + sizeof promised;
  if (bytes.size() != whole)
    return damaged(fmt::format("holds {} bytes instead of {}", bytes.size(), whole), where);
  std::memcpy(&promised, bytes.data() + whole - sizeof promised, sizeof promised);
  const Hash128 found = hash128(bytes.first(whole - sizeof promised));
  if (found != promised) return damaged("does not match its checksum", where);
  if (!hash.empty() && found.hex() != hash)
    return damaged("is whole, but not what the checkpoint names", where);
  Piece piece;
  piece.name = {"", header.incarnation, static_cast<int64_t>(header.step), header.begin,
                header.end};
  const auto* floats = reinterpret_cast<const float*>(bytes.data() + sizeof header);
  piece.weights = {floats, n};
  piece.m = {floats + n, n};
  piece.v = {floats + 2 * n, n};
  if (header.runs == 4) piece.best = {floats + 3 * n, n};
  return piece;
}

Result<std::unique_ptr<PieceStore>> PieceStore::open(const Path& root) {
  FS_TRY(make_directories(root));
  std::error_code ignored;
  std::vector<Path> unfinished;
  for (const auto& entry : fs::recursive_directory_iterator(root, ignored))
    if (entry.path().filename().string().starts_with(kUnfinished))
      unfinished.push_back(entry.path());
  for (const Path& path : unfinished) fs::remove(path, ignored);
  return std::unique_ptr<PieceStore>(new PieceStore(root));
}

Path PieceStore::set_folder(const std::string& job, uint64_t incarnation, int64_t step) const {
  return root_ / job / fmt::format("{}{:09}-{:016x}", kStep, step, incarnation);
}

Path PieceStore::file_of(const PieceName& name) const {
  return set_folder(name.job, name.incarnation, name.step) /
         fmt::format("{}-{}{}", name.begin, name.end, kEnding);
}

Result<std::string> PieceStore::write(const PieceName& name, const Floats& floats) {
  const uint64_t n = name.end - name.begin;
  const bool best = !floats.best.empty();
  FS_CHECK(name.begin < name.end && floats.weights.size() == n && floats.m.size() == n &&
           floats.v.size() == n && (!best || floats.best.size() == n));
  if (!is_job(name.job) || name.step < 0)
    return Error{ErrorCode::kInvalidArgument, "cannot name a checkpoint", "job " + name.job, ""};
  Header header{{},         name.incarnation, static_cast<uint64_t>(name.step),
                name.begin, name.end,         best ? 4u : 3u};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  FS_TRY(require_free_space(root_, sizeof header + header.runs * n * sizeof(float)));
  const Path file = file_of(name), folder = file.parent_path();
  std::error_code ignored;
  const bool first = !fs::exists(folder, ignored);
  FS_TRY(make_directories(folder));
  const Path tmp = folder / (kUnfinished + file.filename().string());
  const int fd = ::open(tmp.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return errno_error("cannot create", tmp);
  Hasher128 hasher;
  Status status;
  const auto put = [&](std::span<const std::byte> bytes) {
    hasher.update(bytes);
    if (status.ok()) status = write_all(fd, bytes, tmp);
  };
  put(std::as_bytes(std::span(&header, 1)));
  for (const auto run : {floats.weights, floats.m, floats.v, floats.best}) put(std::as_bytes(run));
  const Hash128 hash = hasher.digest();
  if (status.ok()) status = write_all(fd, bytes_of(hash), tmp);
  if (status.ok() && ::fdatasync(fd) != 0) status = errno_error("cannot sync", tmp);
  if (::close(fd) != 0 && status.ok()) status = errno_error("cannot close", tmp);
  if (status.ok() && ::rename(tmp.c_str(), file.c_str()) != 0)
    status = errno_error("cannot rename into", file);
  if (status.ok()) status = sync_directory(folder);
  if (first)  // a crash must not take the folders' own names
    for (const Path& changed : {folder.parent_path(), root_})
      if (status.ok()) status = sync_directory(changed);
  if (status.ok()) return hash.hex();
  fs::remove(tmp, ignored);
  return std::move(status).error();
}

Result<Piece> PieceStore::read(const PieceName& name, const std::string& hash) const {
  if (!is_job(name.job))
    return Error{ErrorCode::kNotFound, "has no pieces here", "job " + name.job, ""};
  const Path path = file_of(name);
  FS_ASSIGN(MappedFile file, MappedFile::open(path));
  const auto kept = std::make_shared<const MappedFile>(std::move(file));
  FS_ASSIGN(Piece piece, parse_piece(kept->bytes(), hash, path.string()));
  piece.name.job = name.job;
  if (piece.name != name) return damaged("is another piece than its name says", path.string());
  piece.file = kept;
  return piece;
}

std::vector<PieceName> PieceStore::list(const std::string& job) const {
  constexpr size_t kMost = 1 << 20;
  std::vector<PieceName> found;
  if (!is_job(job)) return found;
  std::error_code ignored;
  for (const auto& folder : fs::directory_iterator(root_ / job, ignored)) {
    const auto set = set_of(folder.path().filename().string());
    if (!set) continue;
    for (const auto& file : fs::directory_iterator(folder.path(), ignored)) {
      const std::string name = file.path().filename().string();
      if (!name.ends_with(kEnding)) continue;
      const auto range =
          pair_of(std::string_view(name).substr(0, name.size() - sizeof kEnding + 1), 10);
      if (range && range->first < range->second && found.size() < kMost)
        found.push_back({job, set->first, set->second, range->first, range->second});
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

void PieceStore::keep(const std::string& job, const std::vector<Set>& kept, Set last) {
  if (!is_job(job)) return;
  std::error_code ignored;
  std::vector<Path> old;
  for (const auto& folder : fs::directory_iterator(root_ / job, ignored)) {
    const auto set = set_of(folder.path().filename().string());
    if (set && *set <= last && std::find(kept.begin(), kept.end(), *set) == kept.end())
      old.push_back(folder.path());
  }
  for (const Path& path : old) fs::remove_all(path, ignored);
}

void PieceStore::remove(const std::string& job) {
  std::error_code ignored;
  if (is_job(job)) fs::remove_all(root_ / job, ignored);
}

void PieceStore::keep_jobs(const std::vector<std::string>& jobs) {
  std::error_code ignored;
  std::vector<Path> gone;
  for (const auto& folder : fs::directory_iterator(root_, ignored))
    if (std::find(jobs.begin(), jobs.end(), folder.path().filename().string()) == jobs.end())
      gone.push_back(folder.path());
  for (const Path& path : gone) fs::remove_all(path, ignored);
}

}  // namespace fastserve
