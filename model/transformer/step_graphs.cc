#include "model/transformer/step_graphs.h"

#include <string>

namespace fastserve {

Result<std::unique_ptr<DeviceGraph>> graph_of(Device& device, const std::function<void()>& work) {
  device.begin_capture();
  work();
  return device.end_capture();
}

void tell_of_graphs(const Device& device, const char* what, const Status& made) {
  const Log& log = device.graph_use().log;
  if (made.ok())
    log.info(std::string(what) + " are started as graphs");
  else
    log.warning(std::string(what) + " start their kernels one by one, since no graph can be had: " +
                made.error().message());
}

}  // namespace fastserve
