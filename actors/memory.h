// How much memory this process has and may still have.
#pragma once

#include <cstdint>
#include <optional>

#include "base/file.h"
#include "train/plan.h"

namespace fastserve {

/// Bytes that can be had without swapping: the machine's, or what the control groups of this
/// process (a container's limit) leave of them. Nothing when the system does not say.
std::optional<uint64_t> memory_at_hand();
/// What the group at `folder` and those above it, up to `root`, leave; nothing when none has a
/// limit. Version 2 of control groups; page cache that nobody needs counts as free.
std::optional<uint64_t> control_group_headroom(const Path& root, const Path& folder);

/// Resident bytes that this process has allocated: without its code and the files it has mapped.
uint64_t process_memory();

/// kResourceExhausted, with every figure, when the job needs more than `limit` (0: more than can be
/// had).
Status check_memory(const MemoryEstimate& need, uint64_t limit);

}  // namespace fastserve
