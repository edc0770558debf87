// What a decoder can be asked for.
#pragma once

#include "model/decoder.h"

namespace fastserve {

/// kInvalidArgument, with what to change.
Status check_options(const DecoderOptions& options);

}  // namespace fastserve
