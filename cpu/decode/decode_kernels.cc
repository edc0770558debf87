#include "cpu/decode/decode_kernels.h"

namespace fastserve {

extern const DecodeKernels kDecodeKernelsPortable;
#if defined(__x86_64__)
extern const DecodeKernels kDecodeKernelsAvx2, kDecodeKernelsAvx512, kDecodeKernelsAvx512Vnni,
    kDecodeKernelsAvx512Bf16;
#endif

const DecodeKernels& decode_kernels(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kPortable:
      break;
    case Isa::kAvx2:
      return kDecodeKernelsAvx2;
    case Isa::kAvx512:
      return kDecodeKernelsAvx512;
    case Isa::kAvx512Vnni:
      return kDecodeKernelsAvx512Vnni;
    case Isa::kAvx512Bf16:
      return kDecodeKernelsAvx512Bf16;
  }
#endif
  return kDecodeKernelsPortable;
}

}  // namespace fastserve
