#include "train/optimiser_place.h"

#include <fmt/format.h>

#include <algorithm>

#include "train/resident_backend.h"
#include "train/split_backend.h"

namespace fastserve {
namespace {

/// Each of some cards has work in a step, and as much as the others, where its sequences suffice.
int choose_microbatches_of(const TrainSpec& spec, int cards) {
  const int chosen = choose_device_microbatches(spec);
  const int even = (chosen + cards - 1) / cards * cards;
  return std::min(even, spec.batch * spec.accumulation);
}

Status check_room(std::span<const std::unique_ptr<Device>> devices, const TrainSpec& spec,
                  const TrainPlan& plan, const TrainPlacement& placement) {
  const ParameterLayout layout(spec.model);
  for (const auto& device : devices)
    FS_TRY(choose_recompute(*device, spec.model, layout, spec.precision, plan.max_rows,
                            resident_share(plan), placement.recompute));
  return {};
}

}  // namespace

Result<bool> place_optimiser(std::span<const std::unique_ptr<Device>> devices, const Device& host,
                             const std::string& before, int cores, const Log& log, TrainSpec& spec,
                             TrainPlacement& placement) {
  auto place = placement.optimiser;
  if (!place && before == split_numerics(*devices.front(), host)) place = OptimiserPlace::kHost;
  if (place == OptimiserPlace::kHost) return false;
  TrainSpec there = spec;
  TrainPlacement placed = placement;
  placed.cards = static_cast<int>(devices.size());
  if (there.microbatches == 0) there.microbatches = choose_microbatches_of(there, placed.cards);
  // One shard for a card: more would only wait for each other. All cards have as many.
  placed.shards = (std::max(1, placed.shards) + placed.cards - 1) / placed.cards * placed.cards;
  const TrainPlan plan = plan_training(there, placed, cores);
  if (const Status fits = check_room(devices, there, plan, placed); !fits.ok()) {
    if (place) return fits.error();
    log.info("the optimiser's state stays with the host: " + fits.error().message());
    return false;
  }
  if (plan.microbatches < placed.cards)
    log.warning(
        fmt::format("a step of {} microbatches has work for {} of {} cards: more "
                    "--microbatches would have for all",
                    plan.microbatches, plan.microbatches, placed.cards));
  spec = there;
  placement = placed;
  return true;
}

}  // namespace fastserve
