#include "cpu/train/train_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FS_INLINE inline __attribute__((always_inline))

namespace fastserve {
namespace {
#include "cpu/train/elements.inc"
//
#include "cpu/train/simd_avx2.inc"
//
#include "cpu/train/partial_vectors.inc"
//
#include "cpu/train/transpose_by_fours.inc"
//
#include "cpu/train/kernels.inc"
}  // namespace

extern const TrainKernels kTrainKernelsAvx2[3];
const TrainKernels kTrainKernelsAvx2[3] = {make_table<float>(), make_table<Bf16>(),
                                           make_table<Half>()};

}  // namespace fastserve
#endif
