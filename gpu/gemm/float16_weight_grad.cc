#include "gpu/gemm_start.inc"

template void fastserve::gpu::start_gemm<fastserve::Float16,
                                         fastserve::gpu::ProductKind::kWeightGrad>(Runtime&,
                                                                                   const Product&);
