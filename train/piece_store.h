// Pieces of checkpoints on a node's own disk.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "train/checkpoint_pieces.h"

namespace fastserve {

/// A piece in a map of its file, which is what its name says, byte for byte.
struct Piece {
  PieceName name;
  std::shared_ptr<const MappedFile> file;
  std::span<const float> weights, m, v;
  std::span<const float> best;  ///< empty: there was none
};

/// Reads a piece from all bytes of its file. `hash`: what the file must have; empty: what it says
/// itself. kCorrupt says what is wrong. The name's job is left empty.
Result<Piece> parse_piece(std::span<const std::byte> bytes, const std::string& hash,
                          const std::string& where);

/// ROOT/JOB/step-000000250-INCARNATION/BEGIN-END.piece.
///
/// Owns:     the folder; one process at a time.
/// Threads:  any.
/// Promises: a piece is whole or not there, whatever is killed when: written under another name,
///           synced and renamed.
class PieceStore {
 public:
  /// Creates the folder, and removes what a crash left half-written.
  static Result<std::unique_ptr<PieceStore>> open(const Path& root);

  struct Floats {
    std::span<const float> weights, m, v;
    std::span<const float> best;  ///< may be empty
  };
  /// Returns the file's hash once the disk has it. kResourceExhausted, before anything is written,
  /// when space is short.
  Result<std::string> write(const PieceName& name, const Floats& floats);
  /// kNotFound; kCorrupt when it is not what was written, or not `hash`.
  Result<Piece> read(const PieceName& name, const std::string& hash) const;
  /// By name alone.
  std::vector<PieceName> list(const std::string& job) const;

  /// Names a job's checkpoint: incarnation, step.
  using Set = std::pair<uint64_t, int64_t>;
  /// Of a job's pieces those of the checkpoints `kept` stay, and what is newer than `last`, which
  /// may be at work.
  void keep(const std::string& job, const std::vector<Set>& kept, Set last);
  void remove(const std::string& job);
  /// Removes what belongs to none of these jobs.
  void keep_jobs(const std::vector<std::string>& jobs);

 private:
  explicit PieceStore(Path root) : root_(std::move(root)) {}
  Path set_folder(const std::string& job, uint64_t incarnation, int64_t step) const;
  Path file_of(const PieceName& name) const;

  const Path root_;
};

}  // namespace fastserve
