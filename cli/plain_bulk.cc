#include "cli/plain_bulk.h"

namespace fastserve {

void add_plain_bulk(CLI::App& command, PlainBulk& plain) {
  command.add_flag("--plain-bulk", plain.allowed,
                   "Tensors without TLS, where both ends say so and have shown their certificates");
  command
      .add_option("--trusted-network", plain.networks,
                  "With --plain-bulk: a network where nobody listens in, like 10.1.0.0/16 "
                  "(default: this host alone)")
      ->delimiter(',');
}

}  // namespace fastserve
