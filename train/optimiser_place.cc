#include "train/optimiser_place.h"

#include "train/resident_backend.h"
#include "train/split_backend.h"

namespace fastserve {

Result<bool> place_optimiser(const Device& device, const Device& host, const std::string& before,
                             int cores, const Log& log, TrainSpec& spec,
                             TrainPlacement& placement) {
  auto place = placement.optimiser;
  if (!place && before == split_numerics(device, host)) place = OptimiserPlace::kHost;
  if (place == OptimiserPlace::kHost) return false;
  TrainSpec there = spec;
  TrainPlacement placed = placement;
  if (there.microbatches == 0) there.microbatches = choose_device_microbatches(there);
  if (placed.shards == 0) placed.shards = 1;  // they would only wait for each other
  const TrainPlan plan = plan_training(there, placed, cores);
  const auto fits =
      choose_recompute(device, there.model, ParameterLayout(there.model), there.precision,
                       plan.max_rows, resident_share(plan), placed.recompute);
  if (!fits.ok() && place) return fits.error();
  if (!fits.ok()) {
    log.info("the optimiser's state stays with the host: " + fits.error().message());
    return false;
  }
  spec = there;
  placement = placed;
  return true;
}

}  // namespace fastserve
