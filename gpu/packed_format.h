// Which kernels are for a matrix's weights.
#pragma once

#include "gpu/kernels/packed_weights.cuh"
#include "model/quantised.h"

namespace fastserve::gpu {

/// How a matrix's weights lie on the card: see GpuDecodeMatrix.
struct WeightKind {
  WeightFormat format;
  bool sparse;  ///< two of every four are left out
  bool operator==(const WeightKind&) const = default;
};

/// Calls act.template operator()<PackedFormat, group of inputs that share a scale>(), for weights
/// that tensor cores take; else does nothing.
template <class Act>
void with_packed_format(const WeightKind& kind, const Act& act) {
  switch (kind.format) {
    case WeightFormat::kBFloat16:
      return act.template operator()<PackedFormat::kBFloat16, 128>();
    case WeightFormat::kInt8Row:
      if (kind.sparse) return act.template operator()<PackedFormat::kSparseInt8Row, 128>();
      return act.template operator()<PackedFormat::kInt8Row, 128>();
    case WeightFormat::kInt8Group128:
      if (kind.sparse) return act.template operator()<PackedFormat::kSparseInt8, 128>();
      return act.template operator()<PackedFormat::kInt8, 128>();
    case WeightFormat::kInt8Group32:
      return act.template operator()<PackedFormat::kInt8, 32>();
    case WeightFormat::kInt4Group128:
      return act.template operator()<PackedFormat::kInt4, 128>();
    case WeightFormat::kInt4Group32:
      return act.template operator()<PackedFormat::kInt4, 32>();
    case WeightFormat::kFloat32:
    case WeightFormat::kFloat16:
      return;  // decode_vector_product's
  }
}

}  // namespace fastserve::gpu
