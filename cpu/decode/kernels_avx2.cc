#include "cpu/decode/decode_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FS_INLINE static inline __attribute__((always_inline))

namespace fastserve {
namespace {
#include "cpu/decode/simd_avx2.inc"
//
#include "cpu/decode/vector_math.inc"
//
#include "cpu/decode/prepare.inc"
//
#include "cpu/decode/multiply.inc"
//
#include "cpu/decode/attend.inc"
//
#include "cpu/decode/kernel_table.inc"
}  // namespace

extern const DecodeKernels kDecodeKernelsAvx2;
constinit const DecodeKernels kDecodeKernelsAvx2 = make_table();

}  // namespace fastserve
#endif
