#pragma once

#include <memory>

#include "cpu/isa.h"
#include "cpu/lane_pool.h"
#include "model/decode_ops.h"

namespace fastserve {

/// The inference ops for one ISA path. `lanes` must outlive the result.
std::unique_ptr<DecodeOps> make_cpu_decode_ops(Isa isa, LanePool& lanes);

}  // namespace fastserve
