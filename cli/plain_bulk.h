// The options by which tensors may travel without TLS, the same for a coordinator and a node.
#pragma once

#include <CLI/CLI.hpp>

#include "api/cluster_host.h"

namespace fastserve {

void add_plain_bulk(CLI::App& command, PlainBulk& plain);

}  // namespace fastserve
