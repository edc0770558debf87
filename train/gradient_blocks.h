// A block of values in each of the forms that look at nothing but the block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "train/gradient_format.h"

namespace fastserve {

/// Values of a block at most.
constexpr size_t kGradientBlock = 4096;

/// Whether all values are finite and below 2^100, so that no sum of a few of them overflows.
bool encodable(const float* x, size_t n);

/// Bytes of n <= kGradientBlock values: a function of the format and n alone. Not for kLowRank.
size_t block_bytes(const GradientFormat& format, size_t n);

/// Requires encodable values. The same bytes on every machine.
void encode_block(const GradientFormat& format, const float* x, size_t n, std::byte* out);

/// False when encode_block() writes no such bytes: values that are not finite, places that are
/// out of order or beyond n. `x` is then unspecified.
bool decode_block(const GradientFormat& format, const std::byte* in, size_t n, float* x);

}  // namespace fastserve
