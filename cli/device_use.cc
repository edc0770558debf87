#include "cli/device_use.h"

namespace fastserve {

void add_device_use(CLI::App& c, TrainPlacement& placement) {
  c.add_option_function<std::string>(
       "--optimiser",
       [&placement](const std::string& where) {
         placement.optimiser = where == "device" ? OptimiserPlace::kDevice : OptimiserPlace::kHost;
       },
       "On a GPU: where weights are updated, part of the result's bits. device (default where its "
       "memory holds it) or host")
      ->check(CLI::IsMember({"device", "host"}));
  c.add_option_function<std::string>(
       "--recompute",
       [&placement](const std::string& what) {
         placement.recompute = what == "layer" ? Recompute::kLayer : Recompute::kNone;
       },
       "layer: keep each layer's input alone and compute the rest again, for memory; none: never. "
       "Default: where memory asks for it; the result is the same")
      ->check(CLI::IsMember({"layer", "none"}));
}

}  // namespace fastserve
