// The stand-in's memory of what happened.
#pragma once

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace stub_driver {

struct State {
  std::mutex mutex;
  std::condition_variable reached;  // no longer stalled
  int waiting = 0;
  std::vector<std::string> calls;
  int launches = 0, fail_at = -1, fail_code = 0;
  bool lose = false, lost = false, stalled = false;
  cudaError_t last = cudaSuccess;
  std::map<const void*, size_t> allocations;
  std::set<const void*> streams, events, graphs;  // a graph's executable is one, too
  const void* captures = nullptr;                 // the stream whose work is recorded
};
State& state();

/// Of the calling thread.
int current_card();

/// Counts a call that a test may make fail; what it must return: cudaSuccess unless scripted.
cudaError_t enter(const char* call);

}  // namespace stub_driver

#define STUB_CALL()                                                                         \
  if (const cudaError_t stub_code = stub_driver::enter(__func__); stub_code != cudaSuccess) \
  return stub_code
