// A client's side of connections that carry models and the tokens of answers.
#pragma once

#include <memory>
#include <string>

#include "base/clock.h"
#include "cluster/transfer_documents.h"
#include "net/stream.h"

namespace fastserve {

struct OpenedTransfer {
  std::unique_ptr<Stream> stream;
  Json answer;  ///< what the coordinator said to what was asked
};

/// Connects to a coordinator by one of the protocols of transfer_desk.h, and asks. `ask.token` also
/// says what cluster must answer.
/// Errors: the coordinator's own; kUnsupported when it is too old for this.
Result<OpenedTransfer> open_transfer(const std::string& host, int port, const TransferAsk& ask,
                                     Nanoseconds timeout);

}  // namespace fastserve
