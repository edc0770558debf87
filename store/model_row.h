// A stored model as lists show it, as JSON.
#pragma once

#include "base/json.h"
#include "store/store.h"

namespace fastserve {

Json model_row(const ModelInfo& model);
/// kCorrupt for what is none. Members that are missing are as in an empty ModelInfo.
Result<ModelInfo> read_model_row(const Json& row);

}  // namespace fastserve
