// Starting the tensor cores' product of one type and kind.
#pragma once

#include "base/half.h"
#include "gpu/kernels/product_epilogue.cuh"
#include "gpu/runtime.h"

namespace fastserve::gpu {

ProductArguments arguments_of(const Product& product);
inline unsigned tiles_over(int n, int tile) { return static_cast<unsigned>((n + tile - 1) / tile); }

/// Starts the kernel of gpu/kernels/gemm.cuh whose tile suits the product. Each is compiled in a
/// file of its own (gpu/gemm/), side by side: nvcc takes a minute for one.
template <class T, ProductKind kKind>
void start_gemm(Runtime& runtime, const Product& product);

}  // namespace fastserve::gpu
