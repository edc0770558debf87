#include "api/cluster_host.h"

namespace fastserve {

Result<std::unique_ptr<CoordinatorHost>> CoordinatorHost::start(const CoordinatorOptions&) {
  return Error{ErrorCode::kUnsupported, "is not there yet", "the coordinator", ""};
}

Result<std::unique_ptr<NodeHost>> NodeHost::start(const NodeHostOptions&) {
  return Error{ErrorCode::kUnsupported, "is not there yet", "the node", ""};
}

}  // namespace fastserve
