// The rows that a packed matrix is made of, and where they lie on the host.
#pragma once

#include <functional>

#include "gpu/direct_rows.h"
#include "gpu/kernels/stored_rows.cuh"
#include "gpu/staging.h"
#include "model/decode_ops.h"

namespace fastserve::gpu {

/// A matrix passes to the card as pieces of some packed outputs each. A piece has their rows in
/// the order in which a checkpoint holds them: of a gated matrix (each 16 outputs are 8 gates, then
/// their ups) its gates, then its ups.
///
/// Owns:    nothing; the source must outlive it.
/// Threads: any.
class SourceRows {
 public:
  SourceRows(const DecodeMatrixSource& source, int out, bool gated)
      : source_(source), out_(out), gated_(gated) {}

  int packed_outputs() const;
  PieceRows piece(size_t first, size_t outputs) const {
    return {int(first), int(outputs), out_, gated_};
  }
  int number(const DecodeMatrixSource::Part& part) const {
    return static_cast<int>(&part - source_.parts.data());
  }

  /// Rows that are neighbours in a part and in a piece.
  struct Run {
    const DecodeMatrixSource::Part* part;
    size_t row, count;  ///< row: of the part
    size_t place;       ///< of the first, in the piece
  };
  /// Calls use(run) for what the places from `begin` to `end` of a piece hold. Places that are
  /// nobody's are left out.
  void for_each_run(const PieceRows& piece, size_t begin, size_t end,
                    const std::function<void(const Run&)>& use) const;

  /// Rows of floats as they are stored, `row_bytes` each, by the host or from where they lie.
  void write(const Staging::Rows& rows, size_t row_bytes) const;
  void lay(const PieceRows& piece, size_t row_bytes, const DirectRows::Put& put) const;

 private:
  const DecodeMatrixSource& source_;
  const int out_;
  const bool gated_;
};

/// Those of a quantised matrix: a piece has its rows' codes, then their scales, as they are stored.
class QuantisedRows {
 public:
  QuantisedRows(const DecodeMatrixSource& source, const SourceRows& rows);

  bool stored() const { return stored_; }
  bool half_scales() const { return half_scales_; }
  int groups() const { return groups_; }
  size_t row_bytes() const { return code_bytes_ + scale_bytes_; }
  /// int8 codes of a part.
  const uint8_t* codes(const DecodeMatrixSource::Part& part) const;

  StoredRows staged(const void* data, const PieceRows& piece, uint32_t* faults) const;
  void write(const Staging::Rows& rows) const;
  void lay(const PieceRows& piece, const DirectRows::Put& put) const;

 private:
  void write_codes(const SourceRows::Run& run, std::byte* to) const;

  const DecodeMatrixSource& source_;
  const SourceRows& rows_;
  const bool stored_;
  bool half_scales_ = false;
  int groups_ = 0;
  size_t code_bytes_ = 0, scale_bytes_ = 0;  ///< of a row
};

/// All of a source lies as it is stored in memory that copies reach directly.
bool is_pinned(const Runtime& runtime, const DecodeMatrixSource& source);

}  // namespace fastserve::gpu
