// The vocabulary of kernels: CUDA's under nvcc, the emulator's elsewhere, so that each kernel is
// written once. Kernels of this room include this header and nothing of CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/half.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

/// Declares `name`, the block's dynamic shared memory as T. Static shared arrays are not used:
/// their size would escape the check of what a launch asks for.
#define FS_SHARED(T, name)                                           \
  extern __shared__ __align__(128) unsigned char fs_shared_memory[]; \
  T* const name = reinterpret_cast<T*>(fs_shared_memory)
#else
#include "gpu/simt/emulator.h"
#define FS_SHARED(T, name) T* const name = reinterpret_cast<T*>(::fastserve::simt::shared_memory())
#endif

#define FS_DEVICE __device__ __forceinline__

// Chains: a kernel of launch_chained() may begin while the kernel before it still runs, on cards of
// compute capability 9.0 and more. Elsewhere, and on the emulator, all of this is nothing, so that
// no test here can see what was touched too early: reviewers have to.
//
/// The block's wait until all work before the kernel is done and can be seen. Every thread of every
/// block calls it, also one that has nothing to do: the kernel's end tells the next one that what
/// came before it has ended, too. In front of it nothing may be read that a kernel of the chain may
/// write, and nothing written at all, scratch memory included: weights may be read.
#if defined(__CUDACC__)
FS_DEVICE void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// Brings the 128 bytes around `at` to the card's cache, whenever it can.
FS_DEVICE void prefetch_line(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }
/// The next kernel of the chain may begin once every block has called this, or ended.
FS_DEVICE void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif

/// In front of a loop whose bounds the compiler knows and whose arrays are to stay in registers.
#if defined(__CUDACC__)
#define FS_UNROLL _Pragma("unroll")
#define FS_NO_UNROLL _Pragma("unroll 1")
#else
#define FS_UNROLL
#define FS_NO_UNROLL
#endif

namespace fastserve::gpu {

constexpr uint32_t kWholeWarp = 0xffffffffu;

/// How code that several kernels share waits in one that has a chain to itself.
struct ChainWait {
  FS_DEVICE void operator()() const { wait_for_previous(); }
};

// Barriers beside __syncthreads().
#if defined(__CUDACC__)
/// Of the first kThreads threads of a block, a multiple of 32: the others do not call.
template <int kThreads>
FS_DEVICE void sync_first() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}
// Of the grid of a launch_together(), in two parts: what any thread wrote before arrive_at_grid()
// is seen behind wait_for_grid() by the threads that call that, of any block. `arrived`: a word of
// the card's memory for this kernel alone, 0 before its first launch.
constexpr uint32_t kGridTurned = 0x80000000u;  ///< changes when all have come; the rest is 0 again
/// Looks at `arrived`, a minute or more: a block that does not come by then never will, and a
/// launch that fails is better than one that stays.
constexpr uint32_t kGridPatience = 1u << 28;
/// Release in front of an arrival, acquire behind a wait. Enough, and less of a halt than
/// __threadfence(), which also puts the fences of all blocks into one order.
FS_DEVICE void order_in_grid() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
/// All threads of every block call. To be given to wait_for_grid(), for thread 0.
FS_DEVICE uint32_t arrive_at_grid(uint32_t* arrived) {
  __syncthreads();
  if (threadIdx.x != 0) return 0;
  order_in_grid();
  return atomicAdd(arrived, blockIdx.x == 0 ? kGridTurned - (gridDim.x - 1) : 1u);
}
/// Once in every block for each arrival, by its first kThreads threads.
template <int kThreads>
FS_DEVICE void wait_for_grid(const uint32_t* arrived, uint32_t before) {
  if (threadIdx.x == 0) {
    uint32_t now, asked = 0;
    do {
      if (++asked == kGridPatience) __trap();
      asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(arrived) : "memory");
    } while (((before ^ now) & kGridTurned) == 0);
    order_in_grid();
  }
  sync_first<kThreads>();
}
#else
using simt::sync_first;
inline uint32_t arrive_at_grid(uint32_t*, FS_AT) {
  simt::arrive_at_grid(at);
  return 0;
}
template <int kThreads>
void wait_for_grid(const uint32_t*, uint32_t, FS_AT) {
  simt::wait_for_grid(at);
}
#endif

FS_DEVICE float as_float(int8_t x) { return float(x); }  ///< a code
// Numbers of the training precision; conversions round to nearest even.
#if defined(__CUDACC__)
FS_DEVICE float as_float(float x) { return x; }
FS_DEVICE float as_float(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
FS_DEVICE float as_float(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }
template <class T>
FS_DEVICE T from_float(float x);
template <>
FS_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
FS_DEVICE BFloat16 from_float<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
FS_DEVICE Float16 from_float<Float16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
/// Off by two units of the last place at most; 0 where b is above 2^126.
FS_DEVICE float divide_fast(float a, float b) { return __fdividef(a, b); }
/// The upper half of a product.
FS_DEVICE uint32_t high_product(uint32_t a, uint32_t b) { return __umulhi(a, b); }
FS_DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
FS_DEVICE float bits_float(uint32_t x) { return __uint_as_float(x); }
#else
inline float as_float(float x) { return x; }
inline float as_float(BFloat16 x) { return to_float(x); }
inline float as_float(Float16 x) { return to_float(x); }
template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  return to_bfloat16(x);
}
template <>
inline Float16 from_float<Float16>(float x) {
  return to_float16(x);
}
inline float divide_fast(float a, float b) { return a / b; }
inline uint32_t high_product(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
}
inline uint32_t float_bits(float x) { return std::bit_cast<uint32_t>(x); }
inline float bits_float(uint32_t x) { return std::bit_cast<float>(x); }
#endif

/// Two numbers side by side, as mma wants them: `low` in the low half.
template <class T>
FS_DEVICE uint32_t pack_two(float low, float high) {
  return uint32_t(from_float<T>(low).bits) | uint32_t(from_float<T>(high).bits) << 16;
}
#if defined(__CUDACC__)
template <>
FS_DEVICE uint32_t pack_two<BFloat16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
template <>
FS_DEVICE uint32_t pack_two<Float16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
#endif

/// 2^x to about two units in the last place; 0 where that is below the least normal number.
#if defined(__CUDACC__)
FS_DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#else
inline float fast_exp2(float x) { return exp2f(x); }
#endif

}  // namespace fastserve::gpu
