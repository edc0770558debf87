// Matrix products by cuBLASLt, where its fused epilogues say what a Product asks for.
#pragma once

#include <memory>

#include "base/clock.h"
#include "gpu/cuda/libraries.h"
#include "gpu/matmul_engine.h"
#include "gpu/plan_cache.h"

namespace fastserve::gpu {

/// bfloat16 and half products that are stored, stored as float, or added to a residual; the rest is
/// for the engine that runs everything.
///
/// The algorithm is chosen once for all numbers of rows, among those that the library's heuristic
/// names at kRowsOfChoice rows and that sum over k in one block (no split-k, no reduction between
/// blocks), and kept in `folder`: with a `clock` the fastest of those that give the first one's
/// bits, otherwise the first. So an element's bits do not depend on how many rows share the call,
/// nor on what was measured. A weight gradient over many rows, a multiple of 1024, has an algorithm
/// for that number of them, which may also sum parts of them apart and then add those in order.
///
/// Errors: kUnsupported when the library does not start on the card; kResourceExhausted and
/// kUnavailable as the runtime tells them.
Result<std::unique_ptr<MatmulEngine>> make_cublaslt_engine(const CublasLt& library,
                                                           const std::string& version,
                                                           Runtime& runtime, const Path& folder,
                                                           const Clock* clock = nullptr);

}  // namespace fastserve::gpu
