// Matrix products with the epilogues that a training step asks for, whoever computes them.
#pragma once

#include <memory>
#include <string>

#include "gpu/runtime.h"
#include "model/train_ops.h"

namespace fastserve::gpu {

/// Which operand lies how; everything is row-major.
enum class ProductKind : uint8_t {
  kForward,     ///< out [m, n] = a [m, k] b^T, b [n, k]: x W^T
  kInputGrad,   ///< out [m, n] = a [m, k] b,   b [k, n]: dy W
  kWeightGrad,  ///< out [m, n] = a^T b, a [k, m], b [k, n]: dy^T x
};

enum class ProductEpilogue : uint8_t {
  kStore,        ///< out: compute = p
  kStoreFloat,   ///< out: float = p
  kAddResidual,  ///< out: float = residual + p; residual may be out
  kGelu,         ///< out: compute = gelu(p); slope: compute [m, n] = p less the bias, if not null
  /// b holds n/2 gates over n/2 ups: out: compute [m, n/2] = silu(g) u; slope: compute [m, n] =
  /// (g, u) less their biases, if not null.
  kSwiGlu,
  /// out: compute = gelu'(slope + bias) p; with two parts out, slope and bias are 2n wide, (g, u) =
  /// slope + bias, and out = (u silu'(g) p, silu(g) p).
  kTimesSlope,
};

/// The epilogues that each kind of product comes with; kernels have no code for the others.
constexpr bool goes_with(ProductKind kind, ProductEpilogue epilogue) {
  switch (epilogue) {
    case ProductEpilogue::kStore:
      return kind != ProductKind::kWeightGrad;
    case ProductEpilogue::kStoreFloat:
      return true;
    case ProductEpilogue::kAddResidual:
      return kind != ProductKind::kInputGrad;
    case ProductEpilogue::kGelu:
    case ProductEpilogue::kSwiGlu:
      return kind == ProductKind::kForward;
    case ProductEpilogue::kTimesSlope:
      return kind == ProductKind::kInputGrad;
  }
  return false;
}

/// Rows that one of Product::sums is of.
constexpr int kSumRun = 128;

/// One product. `p` is the float sum over k, plus bias where given, but for kTimesSlope.
struct Product {
  ProductKind kind = ProductKind::kForward;
  ProductEpilogue epilogue = ProductEpilogue::kStore;
  Precision precision = Precision::kBFloat16;  ///< of a, b and what is "compute"
  int m = 0, n = 0, k = 0;
  const void *a = nullptr, *b = nullptr;
  int lda = 0, ldb = 0;
  const void* bias = nullptr;  ///< [n], floats unless `short_bias`
  bool short_bias = false;     ///< of `precision`: for engines that support() it
  void* out = nullptr;
  int out_ld = 0;
  const float* residual = nullptr;  ///< leading dimension out_ld
  void* slope = nullptr;            ///< read by kTimesSlope, written by the forward epilogues
  int slope_ld = 0;
  int slope_parts = 1;
  /// kTimesSlope, for engines that support() it: [m / kSumRun rounded up, slope_parts n], the
  /// column sums of each run of out's rows, as stored. Their order follows from m alone.
  float* sums = nullptr;
};

/// Threads:  one caller at a time. Calls are ordered on the runtime's stream.
/// Promises: an element's bits depend on its row of a, its column of b, its epilogue's operands and
///           k alone; the sum over k is one chain in float, but for kWeightGrad, where a library
///           may cut it into parts by the product's shape.
/// Errors:   through Runtime::report.
class MatmulEngine {
 public:
  virtual ~MatmulEngine() = default;
  /// Part of Device::numerics_id: two engines that may differ in a bit have different names.
  virtual std::string name() const = 0;
  /// False: the caller asks the next engine. The engine of gpu/kernels/gemm.cuh runs everything.
  virtual bool supports(const Product& product) const = 0;
  virtual void run(const Product& product) = 0;
  /// Part of TrainOps::scratch_version().
  virtual uint64_t scratch_version() const { return 0; }
};

/// mma.sync for bfloat16 and half, fused multiply-adds for float; any shape.
std::unique_ptr<MatmulEngine> make_mma_engine(Runtime& runtime);

/// `library` for plain products, and for the others with a pass of ours behind it that adds the
/// bias or makes an activation of what it stored; there a product is rounded once more. The bits of
/// a row stay its own. What the pass does not take (rows that are not on 16 bytes; SwiGLU without
/// slopes) the library is not asked for.
std::unique_ptr<MatmulEngine> make_finishing_engine(std::unique_ptr<MatmulEngine> library,
                                                    Runtime& runtime);

}  // namespace fastserve::gpu
