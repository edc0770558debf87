#include "cpu/decode/decode_kernels.h"

#define FS_INLINE static inline __attribute__((always_inline))

namespace fastserve {
namespace {
#include "cpu/decode/simd_portable.inc"
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

extern const DecodeKernels kDecodeKernelsPortable;
constinit const DecodeKernels kDecodeKernelsPortable = make_table();

}  // namespace fastserve
