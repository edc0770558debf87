#pragma once

#include <memory>

#include "model/decode_ops.h"
#include "model/train_ops.h"

namespace fastserve {

/// Plain loops, double accumulation, storage rounded to `precision` where the op says "compute".
std::unique_ptr<TrainOps> make_reference_train_ops(Precision precision);
std::unique_ptr<DecodeOps> make_reference_decode_ops();

}  // namespace fastserve
