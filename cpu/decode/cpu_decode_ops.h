// The inference ops of the CPU: kernels of one instruction set, shared out over lanes.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "cpu/decode/aligned_array.h"
#include "cpu/decode/decode_kernels.h"
#include "cpu/decode/packed_matrix.h"
#include "cpu/decode/paged_cache.h"
#include "cpu/isa.h"
#include "cpu/lane_pool.h"
#include "model/decode_ops.h"

namespace fastserve {

/// Rows of activations in the form a matrix wants.
struct PreparedRows {
  size_t stride = 0;  ///< bytes from row to row
  AlignedArray<uint8_t> data;
  AlignedArray<float> scale;
  AlignedArray<int32_t> start;
  void reserve(size_t rows, size_t row_bytes, size_t groups);
};

/// See model/decode_ops.h. Work is handed out in items of columns, rows or heads, never parts of a
/// sum, so lanes cannot change bits. Scratch memory grows to the largest batch seen and stays.
class CpuDecodeOps final : public DecodeOps {
 public:
  CpuDecodeOps(Isa isa, LanePool& lanes);
  Result<std::unique_ptr<DecodeMatrix>> make_matrix(const DecodeMatrixSource& source) override;
  Result<std::unique_ptr<KvCache>> make_cache(const KvShape& shape) override;
  void embed(const DecodeEmbed& op) override;
  void matmul(const DecodeMatmul& op) override;
  void attention(const DecodeAttention& op) override;
  void cross_entropy(const float* logits, int rows, int vocab, int ld,
                     std::span<const int32_t> targets, double* losses) override;

 private:
  /// What one lane has for itself, on its own cache lines.
  struct alignas(64) Lane {
    PreparedRows rows;         // of a batch small enough to be prepared by every lane
    uint64_t prepared_op = 0;  // the matmul that `rows` belongs to
    AlignedArray<float> scratch;
  };
  /// Which item belongs to which segment, when each segment has some.
  class SegmentItems {
   public:
    void clear() { first_.assign(1, 0); }
    void add(int64_t items);
    int64_t count() const { return first_.back(); }
    /// The segment of an item, and the item's number within it.
    std::pair<size_t, int> find(int64_t item) const;

   private:
    std::vector<int64_t> first_{0};
  };
  ActivationKind activation_kind(const PackedMatrix& matrix) const;
  size_t row_bytes(const PackedMatrix& matrix) const;
  void matmul_block(const DecodeMatmul& op, int first, int rows);
  void prepare_rows(const DecodeMatmul& op, int first, int from, int to, PreparedRows& rows,
                    Lane& lane) const;
  MultiplyTask multiply_task(const DecodeMatmul& op, int first, const PreparedRows& rows) const;

  void append_rows(const DecodeAttention& op, const Segment& segment, int head, int from, int to);
  void attend_rows(const DecodeAttention& op, const Segment& segment, int head, int next_head,
                   int from, int to, Lane& lane);
  void attend_whole(const DecodeAttention& op);
  void attend_groups(const DecodeAttention& op, int tokens);

  const DecodeKernels& kernels_;
  LanePool& lanes_;
  WeightMemory weights_;
  std::vector<Lane> lane_;
  PreparedRows shared_;
  uint64_t op_ = 0;
  SegmentItems attend_items_, append_items_;
};

}  // namespace fastserve
