// DecodeOps on a GPU.
#pragma once

#include <memory>

#include "gpu/runtime.h"
#include "gpu/staging.h"
#include "gpu/workspace.h"
#include "model/decode_ops.h"

namespace fastserve::gpu {

/// The runtime must outlive it, and what it makes. Weights reach the card in pieces of `staging`
/// bytes. `shelf` may be null, and outlives it otherwise.
std::unique_ptr<DecodeOps> make_decode_ops(Runtime& runtime, size_t staging = Staging::kPiece,
                                           PinnedShelf* shelf = nullptr);

Result<std::unique_ptr<KvCache>> make_kv_cache(Runtime& runtime, const KvShape& shape);
/// Bytes of a block of all layers, as it lies on the host.
size_t kv_block_bytes(const KvCache& cache);
/// Blocks to the host (`out`), or back from there; one after another in pinned memory.
void move_kv_blocks(Runtime& runtime, Workspace& workspace, KvCache& cache,
                    std::span<const int32_t> blocks, void* host, bool out);
class DecodeGathering;
/// `gathering`: what is taken into it, where it takes this; may be null.
void decode_attention(Runtime& runtime, Workspace& workspace, DecodeGathering* gathering,
                      const DecodeAttention& op);

}  // namespace fastserve::gpu
