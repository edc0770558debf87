#pragma once

#include <memory>

#include "cpu/isa.h"
#include "cpu/lane_pool.h"
#include "model/train_ops.h"

namespace fastserve {

/// The training ops for one ISA path. `lanes` must outlive the result.
/// kFloat16 computes in float and rounds stored activations to half (values past 65504 become Inf),
/// so that loss scaling behaves as on a device with half arithmetic.
std::unique_ptr<TrainOps> make_cpu_train_ops(Isa isa, Precision precision, LanePool& lanes);

}  // namespace fastserve
