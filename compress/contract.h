// What a compression may cost: the bounds a user gives, and the verdict on a measured result.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/quantised.h"

namespace fastserve {

/// Which weights are removed.
///   kMagnitude  the smallest of each matrix (sparsity)
///   kWanda      the smallest |w| * ||x||_2 of each output row (sparsity; Sun et al. 2023)
///   k2of4       two of every four neighbours along the input, by magnitude
///   kWanda2of4  the same by Wanda's score
///   kNeurons    whole MLP neurons, so that the matrices shrink (sparsity)
/// The first four leave zeros in matrices of the same size; kNeurons makes the model smaller and
/// faster.
enum class PruningKind : uint8_t { kNone, kMagnitude, kWanda, k2of4, kWanda2of4, kNeurons };

const char* pruning_kind_name(
    PruningKind kind);  ///< "none", "magnitude", "wanda", "2:4", "wanda-2:4", "neurons"
Result<PruningKind> parse_pruning_kind(std::string_view name);

/// What to do, and what it may cost. A bound of 0 is no bound.
struct CompressSpec {
  WeightFormat weights = WeightFormat::kInt8Row;
  /// Of the output head; absent: `weights` for the formats of 8 bits and more, int8-g128 below.
  std::optional<WeightFormat> head;
  PruningKind pruning = PruningKind::kNone;
  double sparsity = 0;  ///< fraction removed, for kMagnitude, kWanda and kNeurons

  double max_perplexity_increase = 0;  ///< 0.01: 1 % above the original's
  double max_perplexity = 0;
  uint64_t max_bytes = 0;
  double min_tokens_per_second = 0;

  WeightFormat head_format() const;
  bool has_sparsity() const;  ///< whether `sparsity` means something for `pruning`
  bool needs_calibration() const;
  /// "int4-g32, neurons 25 %"
  std::string text() const;
  /// kInvalidArgument for a sparsity outside (0, 1) where one is needed, a negative or non-finite
  /// bound.
  Status validate() const;
};

/// One model's figures.
struct Measurement {
  uint64_t bytes = 0;            ///< of its tensors as stored
  double perplexity = 0;         ///< on held-out text
  double tokens_per_second = 0;  ///< decoding one stream

  /// Of a variant whose size alone rules it out.
  static Measurement size_alone(uint64_t bytes) {
    return {bytes, std::numeric_limits<double>::infinity(), 0};
  }
};

/// "12.3 MiB, perplexity 8.21, 420 tokens/s"; of size_alone() "12.3 MiB"
std::string measurement_text(const Measurement& measurement);

/// The bounds that `after` breaks, in words; empty: it may be published. A perplexity that is not
/// finite breaks every contract.
std::vector<std::string> broken_bounds(const CompressSpec& spec, const Measurement& before,
                                       const Measurement& after);

/// Settings to try instead, nearest first: gentler on quality when only quality was broken, harsher
/// when only size or speed was, other ways to get small when both were. At most twelve; none when
/// the original itself breaks the bound on its perplexity.
std::vector<CompressSpec> alternatives(const CompressSpec& spec, const Measurement& before,
                                       const Measurement& after);

/// Ok, or kContractBroken with the broken bounds, the figures, and in the hint the first of
/// alternatives() that passes by `trial` (which compresses and measures; may be empty), or the
/// nearest when none does.
/// kCancelled and other errors of `trial` are returned as they are.
using ContractTrial = std::function<Result<Measurement>(const CompressSpec&)>;
Status judge(const CompressSpec& spec, const Measurement& before, const Measurement& after,
             const ContractTrial& trial = {});

}  // namespace fastserve
