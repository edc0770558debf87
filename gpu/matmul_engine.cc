#include "gpu/matmul_engine.h"

#include "gpu/kernels/gemm.cuh"
#include "gpu/kernels/gemm_float.cuh"
#include "gpu/launch.h"

namespace fastserve::gpu {
namespace {

bool on_eight_bytes(const void* p, int ld) {
  return reinterpret_cast<uintptr_t>(p) % 8 == 0 && ld % 2 == 0;
}

ProductArguments arguments_of(const Product& p) {
  const bool gated = p.epilogue == ProductEpilogue::kSwiGlu;
  const bool halves_even = gated ? p.n % 4 == 0 : p.slope_parts == 1 || p.n % 2 == 0;
  const bool pairs = halves_even && on_eight_bytes(p.out, p.out_ld) &&
                     on_eight_bytes(p.residual, p.out_ld) &&
                     (p.slope == nullptr || on_eight_bytes(p.slope, p.slope_ld));
  return {p.epilogue, p.m,   p.n,      p.k,        p.a,     p.b,        p.lda,         p.ldb,
          p.bias,     p.out, p.out_ld, p.residual, p.slope, p.slope_ld, p.slope_parts, pairs};
}

unsigned ceil_div(int n, int by) { return static_cast<unsigned>((n + by - 1) / by); }

bool on_sixteen_bytes(const void* p, int ld) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && ld % 8 == 0;
}

class MmaEngine final : public MatmulEngine {
 public:
  explicit MmaEngine(Runtime& runtime) : runtime_(runtime) {}
  std::string name() const override { return "mma1"; }
  bool supports(const Product&) const override { return true; }

  void run(const Product& p) override {
    if (p.m <= 0 || p.n <= 0) return;
    switch (p.precision) {
      case Precision::kFloat32:
        return by_kind(
            [&]<ProductKind kKind>() {
              launch(runtime_,
                     {"gemm_float",
                      {ceil_div(p.n, kFloatTile), ceil_div(p.m, kFloatTile)},
                      {256},
                      kFloatGemmShared},
                     gemm_float<kKind>, arguments_of(p));
            },
            p.kind);
      case Precision::kBFloat16:
        return by_kind([&]<ProductKind kKind>() { start<BFloat16, kKind>(p); }, p.kind);
      case Precision::kFloat16:
        return by_kind([&]<ProductKind kKind>() { start<Float16, kKind>(p); }, p.kind);
    }
  }

 private:
  template <class Start>
  static void by_kind(const Start& start, ProductKind kind) {
    switch (kind) {
      case ProductKind::kForward:
        return start.template operator()<ProductKind::kForward>();
      case ProductKind::kInputGrad:
        return start.template operator()<ProductKind::kInputGrad>();
      case ProductKind::kWeightGrad:
        return start.template operator()<ProductKind::kWeightGrad>();
    }
  }

  template <class T, ProductKind kKind>
  void start(const Product& p) {
    const bool aligned = on_sixteen_bytes(p.a, p.lda) && on_sixteen_bytes(p.b, p.ldb);
    const unsigned large = ceil_div(p.m, LargeTile::kM) * ceil_div(p.n, LargeTile::kN);
    // Large tiles read each operand half as often; small ones reach more multiprocessors.
    if (aligned && static_cast<int>(large) >= runtime_.properties().multiprocessors)
      start_tile<T, kKind, LargeTile, true>(p);
    else if (aligned)
      start_tile<T, kKind, SmallTile, true>(p);
    else
      start_tile<T, kKind, SmallTile, false>(p);
  }

  template <class T, ProductKind kKind, class Tile, bool kAligned>
  void start_tile(const Product& p) {
    const unsigned tiles = ceil_div(p.m, Tile::kM) * ceil_div(p.n, Tile::kN);
    launch(runtime_, {"gemm", {tiles}, {Tile::kThreads}, GemmShared<T, kKind, Tile>::kBytes},
           gemm<T, kKind, Tile, kAligned>, arguments_of(p));
  }

  Runtime& runtime_;
};

}  // namespace

std::unique_ptr<MatmulEngine> make_mma_engine(Runtime& runtime) {
  return std::make_unique<MmaEngine>(runtime);
}

}  // namespace fastserve::gpu
