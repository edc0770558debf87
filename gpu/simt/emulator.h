// CUDA's words for g++: what a kernel calls, over the running block's fibers.
#pragma once

#include <math.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "gpu/simt/block.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define threadIdx (::fastserve::simt::running->current->index)
#define blockIdx (::fastserve::simt::running->index)
#define blockDim (::fastserve::simt::running->shape)
#define gridDim (::fastserve::simt::running->grid)

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

namespace fastserve::simt {

inline unsigned char* shared_memory() { return running->shared.data(); }
/// At the end of a thread of a kernel that was started in a chain.
inline void check_waited() {
  if (!running->current->waited)
    running->fail("a kernel of a chain ends without wait_for_previous()");
}
inline int lane() { return static_cast<int>(running->current->linear & 31); }

/// Numbers of the collectives: lanes that call different ones do not meet.
enum Collective {
  kXor = 1,
  kDown,
  kUp,
  kIndex,
  kBallot,
  kSync,
  kMma = 20,  // and the bytes of a number
  kSparseMma = 28,
  kLoadMatrix = 30
};

template <class T>
struct Shuffle {
  T in, out;
  int source;
  bool outside;
};

template <class T>
T shuffle(uint32_t mask, T value, int source, int operation, std::source_location at) {
  Shuffle<T> mine{value, value, source, false};
  collective(
      mask, operation, &mine,
      [](uint32_t lanes, void** all) {
        for (int l = 0; l < 32; ++l) {
          if (!(lanes >> l & 1)) continue;
          auto* to = static_cast<Shuffle<T>*>(all[l]);
          to->outside = !(lanes >> to->source & 1);
          if (!to->outside) to->out = static_cast<Shuffle<T>*>(all[to->source])->in;
        }
      },
      at);
  if (mine.outside) running->fail("a shuffle reads a lane outside its mask");
  return mine.out;
}

}  // namespace fastserve::simt

#define FS_AT std::source_location at = std::source_location::current()

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int with, int width = 32, FS_AT) {
  const int lane = fastserve::simt::lane();
  int source = lane ^ with;
  if ((source & ~(width - 1)) > (lane & ~(width - 1))) source = lane;
  return fastserve::simt::shuffle(mask, value, source, fastserve::simt::kXor, at);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned by, int width = 32, FS_AT) {
  const int lane = fastserve::simt::lane(), n = static_cast<int>(by);
  const int source = lane % width + n < width ? lane + n : lane;
  return fastserve::simt::shuffle(mask, value, source, fastserve::simt::kDown, at);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned by, int width = 32, FS_AT) {
  const int lane = fastserve::simt::lane(), n = static_cast<int>(by);
  const int source = lane % width >= n ? lane - n : lane;
  return fastserve::simt::shuffle(mask, value, source, fastserve::simt::kUp, at);
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int from, int width = 32, FS_AT) {
  const int lane = fastserve::simt::lane();
  const int source = (lane & ~(width - 1)) | (from & (width - 1));
  return fastserve::simt::shuffle(mask, value, source, fastserve::simt::kIndex, at);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, FS_AT) {
  struct Vote {
    int predicate;
    uint32_t result;
  } mine{predicate, 0};
  fastserve::simt::collective(
      mask, fastserve::simt::kBallot, &mine,
      [](uint32_t lanes, void** all) {
        uint32_t result = 0;
        for (int l = 0; l < 32; ++l)
          if ((lanes >> l & 1) && static_cast<Vote*>(all[l])->predicate) result |= 1u << l;
        for (int l = 0; l < 32; ++l)
          if (lanes >> l & 1) static_cast<Vote*>(all[l])->result = result;
      },
      at);
  return mine.result;
}
inline void __syncwarp(uint32_t mask = ~0u, FS_AT) {
  fastserve::simt::collective(
      mask, fastserve::simt::kSync, nullptr, [](uint32_t, void**) {}, at);
}
inline void __syncthreads(FS_AT) {
  fastserve::simt::Block& block = *fastserve::simt::running;
  char* order;
  {
    const fastserve::simt::Quiet quiet;
    fastserve::simt::Fiber& me = *block.current;
    me.at = at;
    me.state = fastserve::simt::FiberState::kAtBarrier;
    order = block.order_of(0);
  }
  fastserve::simt::release(order);
  block.leave();
  fastserve::simt::acquire(order);
}

namespace fastserve::simt {

/// As __syncthreads() of the first kThreads threads of a block.
template <int kThreads>
void sync_first(FS_AT) {
  static_assert(kThreads > 0 && kThreads % 32 == 0);
  Block& block = *running;
  char* order;
  {
    const Quiet quiet;
    Fiber& me = *block.current;
    me.at = at;
    me.state = FiberState::kAtBarrier;
    me.some = kThreads;
    order = block.order_of(kThreads);
  }
  release(order);
  block.leave();
  acquire(order);
}
/// All threads call; later some of them wait_for_grid(), until all blocks have come so far.
inline void arrive_at_grid(FS_AT) {
  Block& block = *running;
  if (block.grid_order == nullptr)
    block.fail("a barrier of the grid, whose blocks need not be there at once");
  __syncthreads(at);
  char* order;
  {
    const Quiet quiet;
    order = &block.grid_order[block.current->arrivals++ & 1];
  }
  release(order);
}
inline void wait_for_grid(FS_AT) {
  Block& block = *running;
  char* order;
  {
    const Quiet quiet;
    Fiber& me = *block.current;
    me.at = at;
    me.state = FiberState::kAtGrid;
    order = &block.grid_order[(me.arrivals - 1) & 1];
  }
  release(&block.wait_order);
  block.leave();
  acquire(order);
}

}  // namespace fastserve::simt

/// Remembered only, so that launch_chained() can refuse a thread that ends without it.
inline void wait_for_previous() { fastserve::simt::running->current->waited = true; }
inline void let_next_begin() {}
inline void prefetch_line(const void*) {}

/// Of whole numbers only: their sums do not depend on who comes first.
template <class T>
T atomicAdd(T* to, T value) {
  static_assert(std::is_integral_v<T>);
  return std::atomic_ref<T>(*to).fetch_add(value);
}
namespace fastserve {
inline const bool kHasFma = __builtin_cpu_supports("fma");
/// For kernels; libm's is a call, which took a quarter of their time.
inline float fmaf(float a, float b, float c) {
  if (!kHasFma) return ::fmaf(a, b, c);
  asm("vfmadd231ss %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
  return c;
}
}  // namespace fastserve
inline int __popc(uint32_t x) { return std::popcount(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
template <class T>
T __ldg(const T* from) {
  return *from;
}
