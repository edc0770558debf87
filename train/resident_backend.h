// Training that stays on a device with memory of its own.
#pragma once

#include "train/device_backend.h"
#include "train/device_memory.h"
#include "train/plan.h"

namespace fastserve {

/// Masters, packed weights, gradients and, through allocate(), AdamW's moments lie on ONE device,
/// whose operations work on them; all sources share it and its order. From step to step nothing of
/// a parameter crosses to the host: tokens go in, losses and the squares of tiles come out. What a
/// checkpoint keeps is copied through pinned memory.
///
/// `device`: requires memory of its own. kResourceExhausted, with what would fit, when it cannot
/// hold what the plan asks for.
Result<std::unique_ptr<TrainBackend>> make_resident_backend(const ModelConfig& config,
                                                            Precision precision,
                                                            std::unique_ptr<Device> device,
                                                            const TrainPlan& plan,
                                                            std::optional<Recompute> recompute);
/// What it keeps there for a job of this plan: on each of its cards.
DeviceShare resident_share(const TrainPlan& plan);
/// Its numerics_id(): the same device beside an optimiser on the host makes other bits.
std::string resident_numerics(const Device& device);

}  // namespace fastserve
