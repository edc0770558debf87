// A stand-in for NCCL over memory that is the host's, as far as one thread's groups go.
#pragma once

#include <nccl.h>

#include <string>
#include <vector>

namespace stub_nccl {

struct State {
  std::vector<std::string> calls;  ///< that may fail, in order
  int fail_at = -1;                ///< which of them does
  int made = 0, live = 0;          ///< communicators
  int destroyed = 0, aborted = 0;  ///< of those that were made, each at most once
  int looks = 0;       ///< at a communicator before it is ready, after each thing it is asked for
  bool never = false;  ///< it never is
  ncclResult_t goes_bad = ncclSuccess;  ///< what a communicator's state turns to
  std::string wrong;                    ///< the first rule of NCCL's that was broken
};
State& state();

}  // namespace stub_nccl
