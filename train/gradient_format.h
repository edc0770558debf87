// In which form gradients and weights travel, by the names a user chooses.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "model/train_ops.h"

namespace fastserve {

/// Appears on the wire: append, never renumber.
enum class GradientKind : uint8_t {
  kFloat32 = 0,   ///< exact
  kBFloat16 = 1,  ///< 2 bytes a value
  kFloat16 = 2,   ///< 2 bytes a value, each block of 4096 scaled by a power of two
  kInt8 = 3,      ///< 1 byte a value, each 256 with a scale
  kTopK = 4,      ///< the largest of each block of 4096
  kSign = 5,      ///< 1 bit a value, each 512 with a scale
  kLowRank = 6,   ///< each matrix as a product of two thin ones (PowerSGD), the rest as bf16
};

/// A form of gradients. fp32 is exact; bf16 and fp16 round; the others leave most of a value for
/// later, so that the sender keeps an ErrorFeedback.
struct GradientFormat {
  GradientKind kind = GradientKind::kFloat32;
  int kept = 0;  ///< kTopK: of 4096 values
  int rank = 0;  ///< kLowRank

  static constexpr int kMostKept = 2048;
  static constexpr int kMostRank = 64;

  bool keeps_residual() const { return kind >= GradientKind::kInt8; }
  bool operator==(const GradientFormat&) const = default;

  /// "fp32", "bf16", "fp16", "int8", "topk:FRACTION", "sign", "lowrank:RANK"; kInvalidArgument
  /// names what there is.
  static Result<GradientFormat> parse(std::string_view text);
  /// What parse() reads.
  std::string text() const;
};

/// A form of weights on their way back to those who compute with them.
struct WeightsBack {
  enum class Kind : uint8_t {
    kExact = 0,     ///< fp32
    kBFloat16 = 1,  ///< bf16 where the weights are only multiplied with, fp32 elsewhere
    kDelta = 2,     ///< the change since the last time, in a form of gradients
  };
  Kind kind = Kind::kExact;
  GradientFormat delta{};  ///< kDelta

  /// Whether nodes that compute in `precision` compute the same bits as with fp32 weights.
  bool exact_for(Precision precision) const {
    return kind == Kind::kExact || (kind == Kind::kBFloat16 && precision == Precision::kBFloat16);
  }
  bool operator==(const WeightsBack&) const = default;

  /// "exact", "bf16", or "int8-delta", "sign-delta", "topk-delta:FRACTION", "lowrank-delta:RANK".
  static Result<WeightsBack> parse(std::string_view text);
  std::string text() const;
};

}  // namespace fastserve
