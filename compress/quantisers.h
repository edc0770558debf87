// Float matrices to codes and scales, by round to nearest.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/quantised.h"

namespace fastserve {

/// A matrix of the right shape with no codes yet: the target of quantise_rows.
QuantisedMatrix make_quantised(WeightFormat format, int rows, int cols);

/// Quantises rows [row, row + count) of `weights` ([rows, cols], all of it) into `out`. Rows are
/// independent: disjoint ranges may run on different threads. False when a weight is not finite or
/// a scale does not fit its type; `out`'s rows are then undefined.
///
/// The rules, each bit for bit that of the named source:
///   kInt8Row       s = absmax/127; code = w/s, ties to even
///   kInt8Group32   ggml quantize_row_q8_0_ref: d = absmax/127, code = w * (1/d), ties away from
///   zero; d as f16 kInt8Group128  the same over 128 inputs kInt4Group32   ggml
///   quantize_row_q4_0_ref: d = (first weight of the largest magnitude)/-8,
///                  code = min(15, trunc(w * (1/d) + 8.5)); d as f16
///   kInt4Group128  quantise_groups(4 bits, 128, symmetric), code + 8; scale as f16
[[nodiscard]] bool quantise_rows(std::span<const float> weights, int row, int count,
                                 QuantisedMatrix& out);

/// Runs body(0) .. body(items - 1) in any order, on whatever threads it likes; returns when all are
/// done.
using ParallelFor = std::function<void(int64_t items, const std::function<void(int64_t)>& body)>;

/// The whole matrix, in chunks of rows given to `parallel` (empty: one after another). The result
/// does not depend on it. kInvalidArgument, naming `where`, for weights that are not finite or too
/// large for the format.
Result<QuantisedMatrix> quantise(std::span<const float> weights, int rows, int cols,
                                 WeightFormat format, const std::string& where,
                                 const ParallelFor& parallel = {});

/// Codes of any width from 2 to 8 bits over groups of inputs, in double precision.
///   symmetric:  scale = absmax / (2^(bits-1) - 1), w = code * scale, |code| <= 2^(bits-1) - 1
///   asymmetric: scale = (max - min) / (2^bits - 1) with 0 inside the range, zero =
///   rint(-min/scale),
///               w = (code - zero) * scale, code in [0, 2^bits - 1]
/// A last group may be shorter. A group of zeros has scale 0 and codes that mean 0.
struct GroupCodes {
  std::vector<int16_t> codes;         ///< [rows, cols]
  std::vector<double> scales, zeros;  ///< [rows, groups]
  int rows = 0, cols = 0, group = 0;
  std::vector<float> dequantised() const;  ///< [rows, cols]
};
GroupCodes quantise_groups(std::span<const float> weights, int rows, int cols, int bits, int group,
                           bool symmetric);

}  // namespace fastserve
