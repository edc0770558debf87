// A stand-in for cuBLASLt that multiplies on the host, in the plainest loops, what its descriptors
// say.
#pragma once

namespace stub_cublaslt {

struct State {
  int live = 0;      ///< handles, descriptors, layouts and preferences not given back
  int calls = 0;     ///< calls that may fail
  int fail_at = -1;  ///< which of them does
  int searches = 0;  ///< heuristics asked
  int products = 0;
  long nanoseconds = 0;  ///< that all products would have taken: each algorithm has its own time
  int fastest_run = 0;   ///< products by the algorithm that is fastest among those of the same bits
};
State& state();

}  // namespace stub_cublaslt
