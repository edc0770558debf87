#include "cpu/train/train_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FS_INLINE inline __attribute__((always_inline))

namespace fastserve {
namespace {
#include "cpu/train/elements.inc"
//
#include "cpu/train/simd_avx512.inc"
//
#include "cpu/train/kernels.inc"
}  // namespace

extern const TrainKernels kTrainKernelsAvx512[3];
const TrainKernels kTrainKernelsAvx512[3] = {make_table<float>(), make_table<Bf16>(),
                                             make_table<Half>()};

}  // namespace fastserve
#endif
