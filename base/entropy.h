// Numbers that nobody can guess: for secrets and for names that must not meet.
#pragma once

#include <cstddef>
#include <span>

namespace fastserve {

/// Fills `bytes` from the kernel's generator. Waits only while a machine that has just started
/// gathers its first entropy; a kernel without the call ends the process.
void fill_with_entropy(std::span<std::byte> bytes);

}  // namespace fastserve
