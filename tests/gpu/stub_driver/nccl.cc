#include "tests/gpu/stub_driver/nccl.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <set>

namespace stub_driver {
// Where NVIDIA's runtime has a stand-in in the same program.
__attribute__((weak)) int current_card();
}  // namespace stub_driver

struct ncclComm {
  int count, rank;
  int looks = 0;  // left until it is ready
};

namespace stub_nccl {

State& state() {
  static State only;
  return only;
}

namespace {

enum class Kind { kReduce, kBroadcast };

/// One rank's part of a collective, inside a group.
struct Part {
  Kind kind;
  const void* from;
  void* into;
  size_t n;
  int root;
  ncclComm* of;
};
thread_local int depth = 0;
thread_local std::vector<Part> group;
std::set<const ncclComm*> communicators;

void broken(const char* rule) {
  if (state().wrong.empty()) state().wrong = rule;
}

bool fails(const char* call) {
  state().calls.emplace_back(call);
  return state().fail_at == static_cast<int>(state().calls.size()) - 1;
}

/// What a call that goes on behind the caller's back returns.
ncclResult_t started(ncclComm* one) {
  one->looks = state().looks;
  return one->looks > 0 || state().never ? ncclInProgress : ncclSuccess;
}

ncclResult_t add(Part part) {
  if (depth == 0) broken("a rank alone asks for a collective, and waits for the others");
  if (!communicators.contains(part.of)) return ncclInvalidArgument;
  if (part.of->looks > 0) broken("a communicator is used before it is ready");
  group.push_back(part);
  return started(part.of);
}

/// All ranks' parts of one collective, whose operands are where a real one's would be.
ncclResult_t run(std::vector<Part> parts) {
  if (parts.empty()) return ncclSuccess;
  const Part& first = parts.front();
  const auto count = static_cast<size_t>(first.of->count);
  for (const Part& part : parts)
    if (parts.size() != count || part.kind != first.kind || part.n != first.n ||
        part.root != first.root) {
      broken("the ranks of a collective do not ask for the same");
      return ncclInvalidUsage;
    }
  std::ranges::sort(parts, {}, [](const Part& part) { return part.of->rank; });
  const auto root = static_cast<size_t>(first.root);
  if (first.kind == Kind::kBroadcast) {
    for (const Part& part : parts)
      if (part.of->rank != first.root)
        std::memmove(part.into, parts[root].from, first.n * sizeof(float));
    return ncclSuccess;
  }
  std::vector<float> sum(first.n, 0.0f);
  for (size_t hop = 1; hop <= count; hop++) {
    const auto* one = static_cast<const float*>(parts[(root + hop) % count].from);
    for (size_t i = 0; i < first.n; i++) sum[i] += one[i];
  }
  std::ranges::copy(sum, static_cast<float*>(parts[root].into));
  return ncclSuccess;
}

ncclResult_t forget(ncclComm* one, int& how) {
  if (communicators.erase(one) == 0) {
    broken("a communicator is given up twice");
    return ncclInvalidArgument;
  }
  delete one;
  state().live--;
  how++;
  return ncclSuccess;
}

}  // namespace
}  // namespace stub_nccl

using namespace stub_nccl;

#define STUB_CALL() \
  if (fails(__func__)) return ncclSystemError

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  const char* given = std::getenv("FASTSERVE_STUB_NCCL");
  *version = given != nullptr ? std::atoi(given) : 22809;
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t) { return "as the test's script says"; }
const char* ncclGetLastError(ncclComm_t) { return "the last of NCCL's own words"; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  STUB_CALL();
  std::memset(id, 0x5a, sizeof *id);
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* made, int count, ncclUniqueId, int rank,
                                    ncclConfig_t* config) {
  STUB_CALL();
  if (depth == 0) broken("one rank alone is started, and waits for the others");
  if (config->blocking != 0) broken("a communicator blocks");
  if (stub_driver::current_card != nullptr && stub_driver::current_card() != rank)
    broken("a rank is started on another rank's card");
  *made = new ncclComm{count, rank};
  communicators.insert(*made);
  state().made++;
  state().live++;
  return started(*made);
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t one, ncclResult_t* result) {
  STUB_CALL();
  if (!communicators.contains(one)) {
    broken("a communicator that is gone is asked how it is");
    return ncclInvalidArgument;
  }
  const bool busy = state().never || one->looks > 0;
  if (one->looks > 0) one->looks--;
  *result = busy ? ncclInProgress : state().goes_bad;
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t one) {
  const bool failing = fails(__func__);
  const ncclResult_t code = forget(one, state().destroyed);
  return failing ? ncclSystemError : code;
}
ncclResult_t ncclCommAbort(ncclComm_t one) {
  const bool failing = fails(__func__);
  const ncclResult_t code = forget(one, state().aborted);
  return failing ? ncclSystemError : code;
}
ncclResult_t ncclGroupStart() {
  STUB_CALL();
  depth++;
  return ncclSuccess;
}
/// Ends the group even where it is scripted to fail.
ncclResult_t ncclGroupEnd() {
  const bool failing = fails(__func__);
  if (depth == 0) broken("a group ends that has not begun");
  if (--depth > 0) return ncclSuccess;
  std::vector<Part> parts;
  parts.swap(group);
  if (failing) return ncclSystemError;
  // One that lost a part on the way is broken: its caller has been told.
  if (state().fail_at >= 0 && !parts.empty() &&
      parts.size() < static_cast<size_t>(parts.front().of->count))
    return ncclInvalidUsage;
  const ncclResult_t code = run(std::move(parts));
  return code == ncclSuccess && (state().looks > 0 || state().never) ? ncclInProgress : code;
}
ncclResult_t ncclReduce(const void* from, void* into, size_t n, ncclDataType_t type,
                        ncclRedOp_t operation, int root, ncclComm_t one, cudaStream_t) {
  STUB_CALL();
  if (type != ncclFloat32 || operation != ncclSum) return ncclInvalidArgument;
  return add({Kind::kReduce, from, into, n, root, one});
}
ncclResult_t ncclBroadcast(const void* from, void* into, size_t n, ncclDataType_t type, int root,
                           ncclComm_t one, cudaStream_t) {
  STUB_CALL();
  if (type != ncclFloat32) return ncclInvalidArgument;
  return add({Kind::kBroadcast, from, into, n, root, one});
}

}  // extern "C"
