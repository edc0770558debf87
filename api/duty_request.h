// What a cluster is asked to deploy and to compress, as JSON.
#pragma once

#include "api/node.h"
#include "base/json.h"

namespace fastserve {

/// Of one model. The port is 0 unless it is asked for: nodes may serve several.
struct ClusterDeployRequest {
  std::string model, node;  ///< node: that is to serve it; empty: any
  DeployRequest deploy;     ///< but its models and progress
};

/// What is not as it is by default, under the names that deploy() in schema/cluster.capnp lists.
Json to_json(const ClusterDeployRequest& request);
Result<ClusterDeployRequest> read_deploy_request(const Json& json);

/// The same of compress(). kInvalidArgument for settings that cannot be, too.
Json to_json(const CompressRequest& request);
Result<CompressRequest> read_compress_request(const Json& json);

/// What came of a compression.
Json to_json(const CompressResult& result);
Result<CompressResult> read_compress_result(const Json& json);

}  // namespace fastserve
