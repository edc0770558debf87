// What a library's product is made into: epilogues as passes of their own.
#pragma once

#include "gpu/kernels/product_epilogue.cuh"

namespace fastserve::gpu {

constexpr int kFinishThreads = 256;

/// Every epilogue but kSwiGlu, on a product [p.m, p.n] that lies at `product` as numbers of P. It
/// may lie where out or slope will: a thread reads all that it needs before it writes.
///
/// Grid:  p.m * p.n / (kWide * kFinishThreads), rounded up. Block: kFinishThreads.
/// Needs: less than 2^32 threads; p.n and every leading dimension multiples of kWide, every pointer
///        on 16 bytes.
/// Bits:  an element's own.
template <ProductKind kKind, class T, class P, int kWide>
__global__ void finish_product(ProductArguments p, const P* product, int ld) {
  const unsigned across = p.n / kWide, item = blockIdx.x * kFinishThreads + threadIdx.x;
  const int row = int(item / across), col = int(item % across) * kWide;
  if (row >= p.m) return;
  finish_inside<kKind, T, kWide>(p, row, col, load_wide<kWide>(product + at(row, ld, col)));
}

/// kSwiGlu: gates are the first half of the product's columns, ups the second.
///
/// Grid: p.m * p.n / 2 / (kWide * kFinishThreads), rounded up. Otherwise as finish_product.
template <class T, int kWide>
__global__ void finish_gated_product(ProductArguments p, const T* product, int ld) {
  const int neurons = p.n / 2;
  const unsigned across = neurons / kWide, item = blockIdx.x * kFinishThreads + threadIdx.x;
  const int row = int(item / across), neuron = int(item % across) * kWide;
  if (row >= p.m) return;
  const T* const from = product + at(row, ld, neuron);
  finish_gated_inside<T, kWide>(p, row, neuron, load_wide<kWide>(from),
                                load_wide<kWide>(from + neurons));
}

}  // namespace fastserve::gpu
