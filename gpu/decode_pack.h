// Weights for inference in the order in which a GPU's lanes read them.
#pragma once

#include <memory>

#include "gpu/direct_rows.h"
#include "gpu/runtime.h"
#include "gpu/staging.h"
#include "gpu/stored_checks.h"
#include "gpu/weight_memory.h"
#include "model/decode_ops.h"

namespace fastserve::gpu {

/// What weights need on their way to the card.
struct WeightLoading {
  /// `piece`: the ring's. A direct copy's are as much larger as those that each chooses by itself.
  WeightLoading(Runtime& on, size_t piece, PinnedShelf* shelf)
      : runtime(on),
        memory(on),
        staging(on, piece, shelf),
        direct(on, piece * (DirectRows::kPiece / Staging::kPiece)),
        checks(on) {}
  Runtime& runtime;
  WeightMemory memory;
  Staging staging;
  DirectRows direct;  ///< instead of it, for what lies in pinned memory
  StoredChecks checks;
};

/// A matrix on the device. `x_ld`: inputs rounded up as its kernel wants activations.
///
/// float and half: [out, in] as it is. bfloat16 and integers: for each 16 outputs, for each step of
/// 16 inputs (bfloat16), 32 (int8) or 64 (int4), 512 bytes: lane l = 4 g + t has 16 of them, the
/// four registers of mma's a-fragment for outputs g and g + 8. Two steps of int4 share a run: a
/// byte holds input 4t + i of a step in its low nibble and input 16 + 4t + i in its high one; the
/// registers are (g, step 0), (g + 8, step 0), (g, step 1), (g + 8, step 1). Scales of groups are
/// f16, as checkpoints hold them, [outputs / 16][group][16]; int8's of a whole output are float,
/// one after another. Where of every four neighbouring int8 codes of an output two or more are zero
/// (what fsctl compress --prune 2:4 leaves) two are kept, 5 bits a weight instead of 8: a unit of
/// 128 inputs is two steps of 64, then the places of each step's codes as mma_sparse_s8 wants them.
/// Not for groups of 32, whose scales change within a step. With `swiglu` each 16 outputs are 8
/// gates, then their ups.
class GpuDecodeMatrix final : public DecodeMatrix {
 public:
  /// Goes on after it returns; ordered before what follows. Stored codes and scales are looked at
  /// meanwhile, for `loading.checks` to say.
  static Result<std::unique_ptr<DecodeMatrix>> make(WeightLoading& loading,
                                                    const DecodeMatrixSource& source);
  size_t bytes() const override { return weights_.bytes() + scales_.bytes(); }
  const void* weights() const { return weights_.data(); }
  const void* scales() const { return scales_.data(); }
  int x_ld() const { return x_ld_; }
  bool sparse() const { return sparse_; }

 private:
  GpuDecodeMatrix(int out, int in, WeightFormat format) : DecodeMatrix(out, in, format) {}
  Status pack_quantised(WeightLoading& loading, const DecodeMatrixSource& source);
  int x_ld_ = 0;
  bool sparse_ = false;
  WeightMemory::Piece weights_, scales_;
};

}  // namespace fastserve::gpu
