// A TrainRequest on its way to a cluster: as JSON.
#pragma once

#include "api/node.h"
#include "base/json.h"

namespace fastserve {

/// What is set, under the names that train() in schema/cluster.capnp lists.
Json to_json(const TrainRequest& request);

/// kInvalidArgument for a key that is none or a value that cannot be, naming it. What settings mean
/// together is for the job to check.
Result<TrainRequest> read_train_request(const Json& json);

}  // namespace fastserve
