// KV blocks on their way to the host and back.
#pragma once

#include "gpu/simt/simt.h"

namespace fastserve::gpu {

constexpr int kMoveThreads = 128;

/// Planes of a pool (a layer's keys or values of one head), each of which holds every block in one
/// piece.
struct MoveArguments {
  unsigned char* pool;
  size_t plane, piece;    ///< bytes from plane to plane, and of one block in one
  const int32_t* blocks;  ///< which ones
  unsigned char* packed;  ///< the first one's pieces, one after another
  size_t packed_block;    ///< bytes from one packed block to the next
  bool out;               ///< from the pool; else into it
};

/// Grid: (planes, blocks). Block: kMoveThreads. Needs: all sizes multiples of Unit's. Bits: as they
/// are.
template <class Unit>
__global__ void move_blocks(MoveArguments p) {
  unsigned char* const in_pool =
      p.pool + size_t(blockIdx.x) * p.plane + size_t(p.blocks[blockIdx.y]) * p.piece;
  unsigned char* const packed =
      p.packed + size_t(blockIdx.y) * p.packed_block + size_t(blockIdx.x) * p.piece;
  const auto* const from = reinterpret_cast<const Unit*>(p.out ? in_pool : packed);
  auto* const to = reinterpret_cast<Unit*>(p.out ? packed : in_pool);
  for (size_t i = threadIdx.x; i < p.piece / sizeof(Unit); i += kMoveThreads) to[i] = from[i];
}

}  // namespace fastserve::gpu
