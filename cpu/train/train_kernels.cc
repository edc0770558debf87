#include "cpu/train/train_kernels.h"

namespace fastserve {

extern const TrainKernels kTrainKernelsPortable[3];
#if defined(__x86_64__)
extern const TrainKernels kTrainKernelsAvx2[3], kTrainKernelsAvx512[3], kTrainKernelsAvx512Bf16[3];
#endif

const TrainKernels& train_kernels(Isa isa, int precision) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kPortable:
      break;
    case Isa::kAvx2:
      return kTrainKernelsAvx2[precision];
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
      return kTrainKernelsAvx512[precision];
    case Isa::kAvx512Bf16:
      return kTrainKernelsAvx512Bf16[precision];
  }
#endif
  return kTrainKernelsPortable[precision];
}

}  // namespace fastserve
