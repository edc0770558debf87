// What the kernel that does several operations of a decode step is told of them.
#pragma once

#include "gpu/kernels/decode_append.cuh"
#include "gpu/kernels/decode_rows.cuh"
#include "gpu/kernels/packed_weights.cuh"

namespace fastserve::gpu {

enum class DecodeStepKind : int32_t { kProduct, kAttend, kJoin };

/// One of the operations. It reads nothing that one beside it in the same step writes.
struct alignas(16) DecodeStep {
  DecodeStepKind kind;
  // kAttend, as of tile_attend: query heads of a block, its grid without the rows, of codes.
  int heads, parts, turns;
  int codes;
  int each;                        ///< kJoin, as of join_parts
  DecodeProductArguments product;  ///< kProduct: rows up to kOwnRows
  PrepareArguments prepare;
  DecodeAttentionArguments attention;  ///< the others; a row is of no sequence that another is of
};

/// A product's weights, as a ring asks for them.
struct RunWeights {
  const void *weights, *scales;
  int tiles, units;
};

/// Most operations of a kernel, of which most may be products.
constexpr int kMostRunSteps = 192;

}  // namespace fastserve::gpu
