// What came of a compression, as the command says it.
#pragma once

#include "cli/command.h"

namespace fastserve {

/// Returns the exit code.
int tell_compressed(const CommandLine& line, const CompressResult& result);

}  // namespace fastserve
