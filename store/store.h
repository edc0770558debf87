// Models by name and version, kept safely on disk.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/result.h"
#include "model/tensor.h"

namespace fastserve {

/// "name@version". Names: [A-Za-z0-9][A-Za-z0-9._-]{0,63}, case kept; a tag is a name that is not
/// all digits. Version 0: where the name points now.
struct ModelRef {
  std::string name;
  uint64_t version = 0;
  std::string text() const;  ///< "name@3", or "name" for version 0
  /// "name", "name@3" or "name@tag" (the tag is resolved by the store). kInvalidArgument otherwise.
  static Result<ModelRef> parse(std::string_view text);
  std::string tag = {};  ///< set when the text named a tag
  bool operator==(const ModelRef&) const = default;
};

/// Where a version came from.
struct Lineage {
  std::string made_by;  ///< "train", "compress", "import"
  std::string parent;   ///< "name@version" it was fine-tuned or compressed from; may be empty
  Json details;         ///< settings and measurements of the job, for people and tools
};

struct ModelInfo {
  ModelRef ref;
  int64_t created_unix = 0;
  uint64_t bytes = 0;         ///< of tensors and documents
  uint64_t unique_bytes = 0;  ///< that no other version shares
  std::vector<std::string> tags;
  bool current = false;  ///< the name points here
  Lineage lineage;
  std::string architecture, weight_format;
  int64_t parameters = 0;
};

/// A version opened for reading. Holds a lease: its bytes stay until the last copy is gone.
struct StoredModel {
  ModelRef ref;
  ModelBundle bundle;  ///< tensors are checked against their checksums when first read
  Lineage lineage;
};

/// Names and versions: what is there, and what becomes of it.
/// Threads: any.
class ModelShelf {
 public:
  virtual ~ModelShelf() = default;
  virtual Result<ModelInfo> show(const ModelRef& ref) const = 0;
  /// Every version of every name, by name then version.
  virtual Result<std::vector<ModelInfo>> list() const = 0;

  /// Moves the name's pointer to an existing version (roll back, roll forward).
  virtual Status point(const ModelRef& ref) = 0;
  /// Versions, tags and the lineage of what was made from them follow.
  virtual Status rename(const std::string& from, const std::string& to) = 0;
  virtual Status tag(const ModelRef& ref, const std::string& tag) = 0;
  virtual Status untag(const std::string& name, const std::string& tag) = 0;
  /// Version 0 with no tag: the whole name. kUnavailable while leased. Returns the bytes freed.
  virtual Result<uint64_t> remove(const ModelRef& ref) = 0;
  /// Reads every byte and checks it; kCorrupt names the tensor, the extent and the block.
  virtual Status verify(const ModelRef& ref, const std::function<void(double)>& progress,
                        const CancelFlag* cancel = nullptr) = 0;
};

class OutgoingModel;
class IncomingModel;
struct ModelListing;
struct ReceiveAs;

/// RocksDB catalogue (names, versions, manifests, references) beside content-addressed extent
/// files.
///
/// Layout of the root: catalogue/ (RocksDB), extents/ (64-256 MiB content-addressed files),
/// tmp/, lock, format (the version of this layout), reserve (space that opening a store on a full
/// disk takes, so that models can be removed from it).
/// Owns:     its directory; one process at a time (kUnavailable names the other).
/// Threads:  every call from any thread.
/// Promises: a publish is whole or absent, whatever is killed when; a version's bytes never change;
///           a name moves atomically; nothing referenced is deleted.
class Store : public ModelShelf {
 public:
  struct Options {
    const Clock* clock = nullptr;  ///< null: the system's
    /// Looks at names and versions (show, list) as they are now, beside a process that has the
    /// store. Everything else is refused (kUnavailable).
    bool glance = false;
  };
  /// Creates the directory when absent. Cleans what a crash left. kCorrupt when the catalogue is
  /// damaged.
  static Result<std::unique_ptr<Store>> open(const Path& root, const Options& options);
  static Result<std::unique_ptr<Store>> open(const Path& root) { return open(root, Options{}); }

  struct PublishOptions {
    bool move_name = true;                 ///< the name points to the new version afterwards
    std::function<void(double)> progress;  ///< 0..1; may be empty
    const CancelFlag* cancel = nullptr;
  };
  /// Writes a new version (the name's highest + 1) and returns its ref. Checks free space first.
  /// Content that the store has is shared, once it was read and found whole; a damaged copy is
  /// replaced, which mends every version that uses it.
  virtual Result<ModelRef> publish(const std::string& name, const ModelBundle& bundle,
                                   const Lineage& lineage, const PublishOptions& options) = 0;
  Result<ModelRef> publish(const std::string& name, const ModelBundle& bundle,
                           const Lineage& lineage) {
    return publish(name, bundle, lineage, PublishOptions{});
  }

  /// kNotFound lists near names. Tensors are mapped or read with O_DIRECT into aligned memory.
  virtual Result<StoredModel> open_model(const ModelRef& ref) = 0;

  // To and from another store (store/transfer.h).

  virtual Result<std::unique_ptr<OutgoingModel>> send(const ModelRef& ref) = 0;
  /// kResourceExhausted, with the figures, when the disk cannot hold what is missing.
  virtual Result<std::unique_ptr<IncomingModel>> receive(ModelListing listing,
                                                         const ReceiveAs& as) = 0;

  virtual const Path& root() const = 0;
};

}  // namespace fastserve
