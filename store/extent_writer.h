// Writes content into new extent files so that a crash leaves either whole files or rubbish in
// tmp/.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/hash.h"
#include "base/result.h"

namespace fastserve {

/// Groups pieces into extent files below root/tmp; finish() syncs them and moves them to
/// root/extents under the hash of their content.
///
/// Owns:     its files in tmp, deleted by the destructor unless finish() moved them.
/// Threads:  one caller.
/// Refuses:  a full disk (kResourceExhausted), with what to do.
class ExtentWriter {
 public:
  struct Place {
    size_t extent = 0;  ///< index into extents() after finish()
    uint64_t offset = 0;
  };
  struct Extent {
    Hash128 hash;
    uint64_t bytes = 0;
  };

  /// `expected` bytes are to come: space for them is claimed extent by extent. Writers that are at
  /// work at once have labels of their own.
  ExtentWriter(const Path& root, uint64_t expected, std::string label = "extent")
      : root_(root), label_(std::move(label)), expected_(expected) {}
  ~ExtentWriter();
  ExtentWriter(const ExtentWriter&) = delete;
  ExtentWriter& operator=(const ExtentWriter&) = delete;

  /// Adds a piece to the open group, closing the group when it is large enough.
  Result<Place> append(std::span<const std::byte> piece);
  /// Writes a piece as an extent of its own.
  Result<Place> append_alone(std::span<const std::byte> piece);
  /// Everything appended is durable and in place afterwards.
  Status finish();
  /// Deletes what finish() moved; for a publish that fails before it is committed.
  void undo();

  const std::vector<Extent>& extents() const { return extents_; }
  /// Nothing was appended.
  bool empty() const { return extents_.empty(); }

 private:
  struct OpenFile {
    int fd = -1;
    size_t index = 0;
    uint64_t size = 0;
    Hasher128 hasher;
  };
  Path temporary(size_t index) const;
  Path final_path(const Extent& extent) const;
  Result<std::unique_ptr<OpenFile>> create(uint64_t likely_bytes);
  Status write(OpenFile& file, std::span<const std::byte> bytes);
  Status close(std::unique_ptr<OpenFile> file);

  Path root_;
  std::string label_;  // of its files in tmp
  uint64_t expected_;
  std::unique_ptr<OpenFile> group_;
  std::vector<Extent> extents_;
  bool moved_ = false;
};

/// Where an extent lies: root/extents/HEX.
Path extent_path(const Path& root, const Hash128& hash);

}  // namespace fastserve
