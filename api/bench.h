// The rows of `fsctl bench`: one number each, measured in this process.
#pragma once

#include <string>
#include <vector>

#include "api/node.h"

namespace fastserve {

struct BenchRow {
  std::string name, what;
};
/// train-char, train-12m, train-124m, decode-110m, ...
const std::vector<BenchRow>& bench_rows();

struct BenchResult {
  std::string row, unit, isa, device;
  int threads = 0;
  double value = 0;          ///< median
  double low = 0, high = 0;  ///< of the repetitions
  Json detail;               ///< shapes, formats, fraction of the peak measured in the same run
};

/// Measures for about `seconds`. Random weights and tokens: speed does not depend on them.
/// `device`: as NodeOptions::device.
Result<BenchResult> run_bench(const std::string& row, double seconds, const std::string& device,
                              Isa isa, int lanes, const CancelFlag& cancel);

}  // namespace fastserve
