// Tensor cores and asynchronous copies: PTX under nvcc, the emulator's arithmetic elsewhere.
//
// Fragments are those of mma.sync (PTX ISA, "Matrix fragments for mma.m16n8k16" and "m16n8k32",
// for sparse ones "m16n8k64"; where the places lie is as cutlass/util/host_reorder.h has it): with
// g = lane / 4 and t = lane % 4, the float accumulator holds rows g and g + 8, columns 2t and 2t
// + 1.
#pragma once

#include "gpu/simt/simt.h"

namespace fastserve::gpu {

#if defined(__CUDACC__)

#define FS_MMA_16816(TYPE)                                                 \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE      \
               ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};\n" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
/// d [16, 8] += a [16, 16] b [16, 8] in float.
FS_DEVICE void mma(BFloat16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  FS_MMA_16816("bf16");
}
FS_DEVICE void mma(Float16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  FS_MMA_16816("f16");
}
#undef FS_MMA_16816
/// d [16, 8] += a [16, 32] b [32, 8] of signed bytes, exactly.
FS_DEVICE void mma_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// d [16, 8] += a [16, 64] b [64, 8] of signed bytes, exactly, where of every four neighbours in a
/// row of `a` two are there: it holds those as a [16, 32] of mma_s8. `places`: of lane 4 g + t
/// those in row g + 8 (t % 2), columns 32 (t / 2) and on: four bits for each four neighbours, the
/// place 0..3 of the first one low and of the second one high; the first is smaller.
FS_DEVICE void mma_sparse_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                             uint32_t places) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},"
      "{%4,%5,%6,%7},{%8,%9,%10,%11},{%0,%1,%2,%3},%12,0x0;\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
        "r"(places));
}
/// Four 8x8 matrices of 16-bit numbers; lane i gives the address of row i % 8 of matrix i / 8.
FS_DEVICE void load_matrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row))));
}
FS_DEVICE void load_matrix_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row))));
}
/// 16 bytes from global to shared memory, the first `bytes` copied and the rest zero.
FS_DEVICE void copy_async(void* to, const void* from, int bytes) {
  asm volatile(
      "cp.async.cg.shared.global [%0],[%1],16,%2;\n" ::"r"(uint32_t(__cvta_generic_to_shared(to))),
      "l"(from), "r"(bytes));
}
/// 8 bytes, or 8 bytes of zero.
FS_DEVICE void copy_async_8(void* to, const void* from, bool there) {
  asm volatile(
      "cp.async.ca.shared.global [%0],[%1],8,%2;\n" ::"r"(uint32_t(__cvta_generic_to_shared(to))),
      "l"(from), "r"(there ? 8 : 0));
}
FS_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;\n"); }
/// Waits until at most N of this thread's groups are on their way.
template <int N>
FS_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N));
}

#else

void mma(BFloat16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, FS_AT);
void mma(Float16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, FS_AT);
void mma_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, FS_AT);
void mma_sparse_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t places,
                   FS_AT);
void load_matrix(uint32_t (&r)[4], const void* row, FS_AT);
void load_matrix_transposed(uint32_t (&r)[4], const void* row, FS_AT);
void copy_async(void* to, const void* from, int bytes);
void copy_async_8(void* to, const void* from, bool there);
void copy_commit();
void copy_wait_for(unsigned groups_left);
template <int N>
void copy_wait() {
  copy_wait_for(N);
}

#endif

}  // namespace fastserve::gpu
