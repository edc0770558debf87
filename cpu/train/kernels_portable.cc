#include "cpu/train/train_kernels.h"

#define FS_INLINE inline __attribute__((always_inline))

namespace fastserve {
namespace {
#include "cpu/train/elements.inc"
//
#include "cpu/train/simd_portable.inc"
//
#include "cpu/train/partial_vectors.inc"
//
#include "cpu/train/transpose_by_fours.inc"
//
#include "cpu/train/kernels.inc"
}  // namespace

extern const TrainKernels kTrainKernelsPortable[3];
const TrainKernels kTrainKernelsPortable[3] = {make_table<float>(), make_table<Bf16>(),
                                               make_table<Half>()};

}  // namespace fastserve
