#include "gpu/matmul_engine.h"

#include "gpu/gemm_start.h"
#include "gpu/kernels/gemm_float.cuh"
#include "gpu/launch.h"

namespace fastserve::gpu {
namespace {

bool on_eight_bytes(const void* p, int ld) {
  return reinterpret_cast<uintptr_t>(p) % 8 == 0 && ld % 2 == 0;
}

class MmaEngine final : public MatmulEngine {
 public:
  explicit MmaEngine(Runtime& runtime) : runtime_(runtime) {}
  std::string name() const override { return "mma3"; }
  bool supports(const Product& p) const override { return p.sums == nullptr; }

  void run(const Product& p) override {
    if (p.m <= 0 || p.n <= 0) return;
    FS_CHECK(goes_with(p.kind, p.epilogue));
    switch (p.kind) {
      case ProductKind::kForward:
        return start<ProductKind::kForward>(p);
      case ProductKind::kInputGrad:
        return start<ProductKind::kInputGrad>(p);
      case ProductKind::kWeightGrad:
        return start<ProductKind::kWeightGrad>(p);
    }
  }

 private:
  template <ProductKind kKind>
  void start(const Product& p) {
    switch (p.precision) {
      case Precision::kFloat32:
        return launch(runtime_,
                      {"gemm_float",
                       {tiles_over(p.n, kFloatTile), tiles_over(p.m, kFloatTile)},
                       {256},
                       kFloatGemmShared},
                      gemm_float<kKind>, arguments_of(p));
      case Precision::kBFloat16:
        return start_gemm<BFloat16, kKind>(runtime_, p);
      case Precision::kFloat16:
        return start_gemm<Float16, kKind>(runtime_, p);
    }
  }

  Runtime& runtime_;
};

}  // namespace

ProductArguments arguments_of(const Product& p) {
  const bool gated = p.epilogue == ProductEpilogue::kSwiGlu;
  const bool halves_even = gated ? p.n % 4 == 0 : p.slope_parts == 1 || p.n % 2 == 0;
  const bool pairs = halves_even && on_eight_bytes(p.out, p.out_ld) &&
                     on_eight_bytes(p.residual, p.out_ld) &&
                     (p.slope == nullptr || on_eight_bytes(p.slope, p.slope_ld));
  return {p.epilogue, p.m,        p.n,
          p.k,        p.a,        p.b,
          p.lda,      p.ldb,      static_cast<const float*>(p.bias),
          p.out,      p.out_ld,   p.residual,
          p.slope,    p.slope_ld, p.slope_parts,
          pairs};
}

std::unique_ptr<MatmulEngine> make_mma_engine(Runtime& runtime) {
  return std::make_unique<MmaEngine>(runtime);
}

}  // namespace fastserve::gpu
