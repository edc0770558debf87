// How one store gives a version to another: what the version is made of, and the pieces of it.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "store/records.h"

namespace fastserve {

/// The longest listing that is read, and the most that the documents of a model may hold.
inline constexpr uint64_t kMostListingBytes = uint64_t{16} << 20,
                          kMostDocumentBytes = uint64_t{256} << 20;

/// A version as another store must know it in order to hold the same.
struct ModelListing {
  ModelRef ref;  ///< where it comes from; its version is set
  VersionRecord about;
  Manifest manifest;

  /// A piece of content; each is listed once, where a model reads it first.
  struct Piece {
    Hash128 hash;
    uint64_t bytes = 0;
    bool alone = false;  ///< of a tensor in several pieces: an extent of its own
  };
  std::vector<Piece> pieces() const;

  std::string encode() const;
  /// From a stranger: kCorrupt for what is no listing, or contradicts itself.
  static Result<ModelListing> decode(std::string_view bytes);
};

/// A version that is being read for another store. Holds a lease on it.
/// Threads: one caller.
class OutgoingModel {
 public:
  virtual ~OutgoingModel() = default;
  virtual const ModelListing& listing() const = 0;
  /// The bytes of listing().pieces()[index], checked; at most kPieceBytes.
  virtual Result<std::string> piece(size_t index) = 0;
};

/// A version that is being written from another store's.
///
/// Promises: what was put stays on disk, whatever ends this before commit(): the next attempt wants
///           only the rest. It is given up when nobody has come for it in a week.
/// Threads:  one caller.
class IncomingModel {
 public:
  virtual ~IncomingModel() = default;
  /// For each of the listing's pieces, whether it has to come.
  virtual const std::vector<bool>& wanted() const = 0;
  /// kCorrupt when the bytes are not the piece's.
  virtual Status put(size_t index, std::span<const std::byte> bytes) = 0;
  /// The version is whole and named, or absent. kInvalidArgument while pieces are missing.
  virtual Result<ModelRef> commit() = 0;
};

/// What a version becomes in the store that receives it.
struct ReceiveAs {
  std::string name;
  /// 0: the name's next. Another: this one, in the place of what had the number before and was not
  /// the same.
  uint64_t version = 0;
};

}  // namespace fastserve
