// Weights in the layout that the kernels read, the same for every batch size.
#pragma once

#include <memory>

#include "cpu/decode/decode_kernels.h"
#include "cpu/host_memory.h"
#include "cpu/lane_pool.h"
#include "model/decode_ops.h"

namespace fastserve {

/// Memory for many matrices, in huge pages that neighbours share: a model is read in the order in
/// which it was packed. A page lives as long as a matrix in it.
class WeightMemory {
 public:
  struct Piece {
    std::shared_ptr<HostMemory> owner;
    std::byte* data = nullptr;  ///< zeroed, 64-byte aligned
  };
  /// kResourceExhausted with the size.
  Result<Piece> take(size_t bytes);

 private:
  std::shared_ptr<HostMemory> open_;  // has room behind used_
  size_t used_ = 0;
};

/// A matrix cut into panels of 16 output columns, each one contiguous run of bytes, so that a batch
/// of one row streams through memory once and in order:
///   header  quantised formats: f16 scales [groups][16] (kInt8Row: float [16]), padded to 64 bytes
///   body    kFloat32   float [depth][16]
///           kFloat16   f16 [depth][16]
///           kBFloat16  bf16 [depth/2][16][2]
///           kInt8,Row  u8 [depth/4][16][4] = code + 128
///           kInt4      u8 [depth/8][16][4] = code, inputs 8i+j in low nibbles, 8i+4+j in high ones
/// depth is the input rounded up to 16, the panels are rounded up to a multiple of 4. With `swiglu`
/// panels alternate between gate and up.
///
/// Weights are the unsigned operand of the int8 dot product, so their zero point costs a multiple
/// of the sum of the activations, known when a row is quantised: the value the sums start from.
class PackedMatrix final : public DecodeMatrix {
 public:
  /// Packs with all lanes. kInvalidArgument when the parts contradict the source's shape or format;
  /// kResourceExhausted with the size.
  static Result<std::unique_ptr<PackedMatrix>> make(const DecodeMatrixSource& source,
                                                    const DecodeKernels& kernels, LanePool& lanes,
                                                    WeightMemory& memory);
  size_t bytes() const override { return panel_ * static_cast<size_t>(panels_); }

  PanelKind kind() const { return kind_; }
  bool quantised() const { return group_ != 0; }
  bool swiglu() const { return swiglu_; }
  int depth() const { return depth_; }
  int group() const { return group_; }    ///< inputs that share an activation scale; 0: floats
  int groups() const { return groups_; }  ///< 0: floats
  int zero() const { return zero_; }
  int quads() const { return panels_ / kQuad; }
  /// Columns of the product after the epilogue.
  int columns() const { return swiglu_ ? out_ / 2 : out_; }
  size_t header_bytes() const { return header_; }
  size_t panel_bytes() const { return panel_; }
  const uint8_t* weights() const { return weights_; }

 private:
  PackedMatrix(const DecodeMatrixSource& source, int out);
  struct Column {
    const float* floats = nullptr;
    const uint8_t* codes = nullptr;
    const float* scales = nullptr;
  };
  Column column(const DecodeMatrixSource& source, int panel, int lane) const;
  void pack_panel(const DecodeMatrixSource& source, const DecodeKernels& kernels, int panel,
                  uint16_t* halves);
  void pack_floats(const float* x, uint8_t* panel, int lane, const DecodeKernels& kernels,
                   uint16_t* halves) const;
  void pack_codes(const Column& column, uint8_t* panel, int lane) const;

  PanelKind kind_ = PanelKind::kFloat32;
  bool swiglu_ = false;
  int depth_ = 0, group_ = 0, groups_ = 0, scale_groups_ = 0, zero_ = 0, panels_ = 0;
  size_t header_ = 0, panel_ = 0;
  std::shared_ptr<HostMemory> memory_;
  uint8_t* weights_ = nullptr;  // in memory_
};

}  // namespace fastserve
