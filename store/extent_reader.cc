#include "store/extent_reader.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <unordered_map>

#include "base/fd.h"
#include "store/extent_writer.h"

namespace fastserve {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kRunBytes = uint64_t{8} << 20;  // paged in and checked by one thread at a time
constexpr int kReadAheadThreads = 2;

Error damaged(const std::string& where, const ManifestEntry& entry, const Path& extent,
              uint64_t offset, std::string_view what) {
  return {
      ErrorCode::kCorrupt,
      fmt::format("{} {} cannot be trusted: extent {}, block at byte {}: {}",
                  entry.document ? "document" : "tensor", entry.name, extent.string(), offset,
                  what),
      where,
      "import or train the same model again, which mends it; or remove this version; or restore "
      "the store from a backup"};
}

/// Pages in [begin, begin + bytes) of a map; false when the disk cannot give them.
bool populate(const std::byte* begin, uint64_t bytes) {
#ifdef MADV_POPULATE_READ
  const auto address = reinterpret_cast<uintptr_t>(begin) & ~(kPage - 1);
  const uint64_t length = reinterpret_cast<uintptr_t>(begin) + bytes - address;
  // EINVAL: a kernel before 5.14, where touching the pages has to do.
  return ::madvise(reinterpret_cast<void*>(address), length, MADV_POPULATE_READ) == 0 ||
         errno == EINVAL;
#else
  return true;
#endif
}

/// One piece in memory.
struct MappedPiece {
  size_t entry = 0;
  Path extent;
  uint64_t extent_offset = 0;
  const std::byte* data = nullptr;
  const PieceRecord* record = nullptr;
};

/// Some blocks of one piece: the unit of reading and checking.
struct Run {
  size_t piece = 0, first_block = 0, blocks = 0;
};

enum class RunState : uint8_t { kUntouched, kReading, kGood, kBad };

class StoredTensors final : public TensorSource {
 public:
  StoredTensors(Path root, std::string where, std::vector<ReadEntry> entries,
                std::shared_ptr<Lease> lease)
      : root_(std::move(root)),
        where_(std::move(where)),
        entries_(std::move(entries)),
        lease_(std::move(lease)) {
    for (size_t i = 0; i < entries_.size(); i++) index_.emplace(entries_[i].entry.name, i);
  }

  ~StoredTensors() override {
    stop_ = true;
    for (std::thread& thread : read_ahead_) thread.join();
    for (const auto& [address, bytes] : maps_) ::munmap(address, bytes);
  }

  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, index] : index_) names.push_back(name);
    return names;
  }
  bool contains(std::string_view name) const override { return index_.find(name) != index_.end(); }
  std::string where() const override { return where_; }

  Result<TensorView> tensor(std::string_view name) const override {
    FS_ASSIGN(const size_t index, find(name));
    std::call_once(prepared_once_, [this] {
      preparation_ = prepare();
      if (preparation_.ok()) start_reading_ahead();
    });
    FS_TRY(preparation_);
    const ManifestEntry& entry = entries_[index].entry;
    const Span& span = spans_[index];
    for (size_t run = span.first_run; run < span.last_run; run++) FS_TRY(finish_run(run));
    return TensorView{entry.dtype, entry.shape, {span.data, entry.bytes}};
  }
  Result<TensorView> glance(std::string_view name) const override {
    FS_ASSIGN(const size_t index, find(name));
    return TensorView{entries_[index].entry.dtype, entries_[index].entry.shape, {}};
  }
  std::shared_ptr<const TensorSource> anew() const override {
    return open_stored_tensors(root_, where_, entries_, lease_);
  }

 private:
  struct Span {
    const std::byte* data = nullptr;
    size_t first_run = 0, last_run = 0;
  };

  /// Where it is among the entries.
  Result<size_t> find(std::string_view name) const {
    const auto found = index_.find(name);
    if (found == index_.end())
      return Error{ErrorCode::kNotFound, fmt::format("has no tensor {}", name), where_, ""};
    return found->second;
  }
  Status prepare() const;
  Result<std::byte*> map_extent(const ManifestEntry& entry, const PieceRecord& piece,
                                uint64_t bytes, std::byte* at) const;
  void check_run(size_t index) const;
  Status finish_run(size_t index) const;
  void start_reading_ahead() const {
    try {
      for (int i = 0; i < kReadAheadThreads; i++)
        read_ahead_.emplace_back([this] { read_everything(); });
    } catch (const std::system_error&) {
      // No thread to be had: whoever asks for a tensor reads it.
    }
  }
  void read_everything() const {
    for (size_t run = 0; run < runs_.size() && !stop_; run++)
      if (claim(run)) check_run(run);
  }
  bool claim(size_t run) const {
    RunState untouched = RunState::kUntouched;
    return states_[run].compare_exchange_strong(untouched, RunState::kReading);
  }

  const Path root_;
  const std::string where_;
  const std::vector<ReadEntry> entries_;
  const std::shared_ptr<Lease> lease_;
  std::map<std::string, size_t, std::less<>> index_;

  // Made by prepare(), then constant.
  mutable std::once_flag prepared_once_;
  mutable Status preparation_;
  mutable std::vector<std::pair<void*, size_t>> maps_;
  mutable std::vector<MappedPiece> pieces_;
  mutable std::vector<Run> runs_;
  mutable std::vector<Span> spans_;  // parallel to entries_

  mutable std::unique_ptr<std::atomic<RunState>[]> states_;  // parallel to runs_
  mutable std::mutex mutex_;
  mutable std::condition_variable run_done_;
  mutable std::unordered_map<size_t, Error> errors_;  // by run; guarded by mutex_
  std::atomic<bool> stop_{false};
  mutable std::vector<std::thread> read_ahead_;
};

/// Maps the first `bytes` of the piece's extent, at `at` when given.
Result<std::byte*> StoredTensors::map_extent(const ManifestEntry& entry, const PieceRecord& piece,
                                             uint64_t bytes, std::byte* at) const {
  const Path path = extent_path(root_, piece.extent);
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat st {};
  if (fd.get() < 0 || ::fstat(fd.get(), &st) != 0) {
    const Error error = errno_error("cannot open", path);
    if (error.code != ErrorCode::kNotFound) return error;
    return damaged(where_, entry, path, piece.offset, "the file is missing");
  }
  if (static_cast<uint64_t>(st.st_size) < bytes)
    return damaged(where_, entry, path, piece.offset,
                   fmt::format("the file ends at byte {}", st.st_size));
  void* map =
      ::mmap(at, bytes, PROT_READ, MAP_PRIVATE | (at == nullptr ? 0 : MAP_FIXED), fd.get(), 0);
  if (map == MAP_FAILED) return errno_error("cannot map", path);
  return static_cast<std::byte*>(map);
}

Status StoredTensors::prepare() const {
  // An extent is mapped up to the last byte that a tensor of this version needs.
  std::map<Hash128, uint64_t> needed;
  for (const ReadEntry& read : entries_)
    for (const PieceRecord& piece : read.pieces)
      needed[piece.extent] = std::max(needed[piece.extent], piece.offset + piece.bytes);

  std::map<Hash128, std::byte*> mapped;
  for (size_t i = 0; i < entries_.size(); i++) {
    const ReadEntry& read = entries_[i];
    Span span;
    span.first_run = runs_.size();
    std::byte* side_by_side = nullptr;  // where the pieces of a large tensor follow each other
    if (read.pieces.size() > 1) {
      void* reserved = ::mmap(nullptr, read.entry.bytes, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (reserved == MAP_FAILED)
        return errno_error("cannot reserve memory for tensor " + read.entry.name, root_);
      maps_.emplace_back(reserved, read.entry.bytes);
      side_by_side = static_cast<std::byte*>(reserved);
    }
    for (size_t p = 0; p < read.pieces.size(); p++) {
      const PieceRecord& piece = read.pieces[p];
      const std::byte* data = nullptr;
      if (side_by_side != nullptr) {
        FS_ASSIGN(data, map_extent(read.entry, piece, piece.bytes, side_by_side + p * kPieceBytes));
      } else {
        std::byte*& base = mapped[piece.extent];
        if (base == nullptr) {
          FS_ASSIGN(base, map_extent(read.entry, piece, needed[piece.extent], nullptr));
          maps_.emplace_back(base, needed[piece.extent]);
        }
        data = base + piece.offset;
      }
      if (p == 0) span.data = data;
      constexpr size_t kRunBlocks = kRunBytes / kBlockBytes;
      for (size_t block = 0; block < piece.checksums.size(); block += kRunBlocks)
        runs_.push_back(
            {pieces_.size(), block, std::min(kRunBlocks, piece.checksums.size() - block)});
      pieces_.push_back({i, extent_path(root_, piece.extent), piece.offset, data, &piece});
    }
    span.last_run = runs_.size();
    spans_.push_back(span);
  }
  states_ = std::make_unique<std::atomic<RunState>[]>(runs_.size());
  return {};
}

/// Pages in and checks a run that this thread has claimed, and tells who waits for it.
void StoredTensors::check_run(size_t index) const {
  const Run& run = runs_[index];
  const MappedPiece& piece = pieces_[run.piece];
  const uint64_t begin = run.first_block * kBlockBytes;
  const uint64_t end = std::min(begin + run.blocks * kBlockBytes, piece.record->bytes);
  std::optional<Error> error;
  if (!populate(piece.data + begin, end - begin))
    error = damaged(where_, entries_[piece.entry].entry, piece.extent, piece.extent_offset + begin,
                    "the disk cannot read it");
  for (size_t i = 0; i < run.blocks && !error; i++) {
    const uint64_t offset = begin + i * kBlockBytes;
    const uint64_t bytes = std::min(kBlockBytes, end - offset);
    if (hash64(std::span(piece.data + offset, bytes)) !=
        piece.record->checksums[run.first_block + i])
      error = damaged(where_, entries_[piece.entry].entry, piece.extent,
                      piece.extent_offset + offset, "the checksum differs");
  }
  const std::lock_guard lock(mutex_);
  states_[index] = error ? RunState::kBad : RunState::kGood;
  if (error) errors_.emplace(index, std::move(*error));
  run_done_.notify_all();
}

Status StoredTensors::finish_run(size_t index) const {
  if (states_[index] == RunState::kGood) return {};
  if (claim(index)) check_run(index);
  std::unique_lock lock(mutex_);
  run_done_.wait(lock, [&] { return states_[index] >= RunState::kGood; });
  if (states_[index] == RunState::kGood) return {};
  return errors_.at(index);
}

/// Reads [offset, offset + bytes) into `buffer`, whole pages at a time; returns where it begins
/// there.
Result<const std::byte*> read_pages(int fd, const Path& path, uint64_t offset, uint64_t bytes,
                                    std::byte* buffer) {
  const uint64_t from = offset / kPage * kPage;
  const uint64_t wanted = offset + bytes - from, pages = (wanted + kPage - 1) / kPage * kPage;
  uint64_t have = 0;
  while (have < wanted) {
    const ssize_t n = ::pread(fd, buffer + have, pages - have, static_cast<off_t>(from + have));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error("cannot read", path);
    have += static_cast<uint64_t>(n);
    // A last page that is not whole ends the file, and O_DIRECT takes no read from inside it.
    if (have < wanted && (n == 0 || have % kPage != 0))
      return Error{ErrorCode::kCorrupt, fmt::format("the file ends at byte {}", from + have),
                   path.string(), ""};
  }
  return buffer + (offset - from);
}

Status read_piece(const Path& root, const std::string& where, const ManifestEntry& entry,
                  const PieceRecord& piece, std::byte* buffer, std::string* out) {
  const Path path = extent_path(root, piece.extent);
  int direct = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (direct < 0 && errno == EINVAL) direct = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const Fd fd(direct);
  if (fd.get() < 0) {
    const Error error = errno_error("cannot open", path);
    if (error.code != ErrorCode::kNotFound) return error;
    return damaged(where, entry, path, piece.offset, "the file is missing");
  }
  for (uint64_t begin = 0; begin < piece.bytes; begin += kRunBytes) {
    const uint64_t bytes = std::min(kRunBytes, piece.bytes - begin);
    const Result<const std::byte*> data =
        read_pages(fd.get(), path, piece.offset + begin, bytes, buffer);
    if (!data.ok()) return damaged(where, entry, path, piece.offset + begin, data.error().what);
    for (uint64_t offset = 0; offset < bytes; offset += kBlockBytes) {
      const std::span block(*data + offset, std::min(kBlockBytes, bytes - offset));
      if (hash64(block) != piece.checksums[(begin + offset) / kBlockBytes])
        return damaged(where, entry, path, piece.offset + begin + offset, "the checksum differs");
    }
    if (out != nullptr) out->append(reinterpret_cast<const char*>(*data), bytes);
  }
  return {};
}

}  // namespace

std::shared_ptr<const TensorSource> open_stored_tensors(const Path& root, std::string where,
                                                        std::vector<ReadEntry> entries,
                                                        std::shared_ptr<Lease> lease) {
  return std::make_shared<StoredTensors>(root, std::move(where), std::move(entries),
                                         std::move(lease));
}

Status read_entry(const Path& root, const std::string& where, const ReadEntry& entry,
                  std::string* out) {
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  const std::unique_ptr<std::byte, Free> buffer(
      static_cast<std::byte*>(std::aligned_alloc(kPage, kRunBytes + 2 * kPage)));
  if (!buffer)
    return Error{ErrorCode::kResourceExhausted, "no memory for a read buffer", where, ""};
  for (const PieceRecord& piece : entry.pieces)
    FS_TRY(read_piece(root, where, entry.entry, piece, buffer.get(), out));
  return {};
}

}  // namespace fastserve
