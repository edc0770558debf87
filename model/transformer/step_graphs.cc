#include "model/transformer/step_graphs.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "base/clock.h"

namespace fastserve {

Result<std::unique_ptr<DeviceGraph>> graph_of(Device& device, const std::function<void()>& work) {
  device.begin_capture();
  work();
  return device.end_capture();
}

void tell_of_graphs(Device& device, const char* what, const Status& made) {
  const Log& log = device.graph_use().log;
  const std::string line =
      made.ok()
          ? std::string(what) + " are started as graphs"
          : std::string(what) + " start their kernels one by one, since no graph can be had: " +
                made.error().message();
  if (!device.untold(line)) return;
  if (made.ok())
    log.info(line);
  else
    log.warning(line);
}

size_t fastest(Device& device, std::span<const std::unique_ptr<DeviceGraph>> graphs,
               std::span<const WorkWay> ways, const char* what) {
  if (graphs.size() < 2) return 0;
  constexpr int kRounds = 3;  // the first of which finds caches and clocks as they happen to be
  const SystemClock clock;
  std::vector<Nanoseconds> least(graphs.size(), Nanoseconds::max());
  for (int round = 0; round < kRounds; ++round)
    for (size_t i = 0; i < graphs.size(); ++i) {
      device.wait(device.mark());
      const Nanoseconds start = clock.now();
      device.launch(*graphs[i]);
      device.wait(device.mark());
      if (round > 0) least[i] = std::min(least[i], clock.now() - start);
    }
  const auto best = static_cast<size_t>(std::ranges::min_element(least) - least.begin());
  std::string told;
  for (size_t i = 0; i < ways.size(); ++i)
    told += fmt::format("{}{:.3f} ms {}", i > 0 ? ", " : "",
                        std::chrono::duration<double, std::milli>(least[i]).count(), ways[i].name);
  device.graph_use().log.info(fmt::format("{}: {}; from now on {}", what, told, ways[best].name));
  return best;
}

}  // namespace fastserve
