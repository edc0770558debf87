// Threads that share the work of one op.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace fastserve {

/// `lanes` lanes: the caller's thread is lane 0, the others are threads of the pool.
///
/// Owns:     lanes - 1 threads, joined by the destructor. One lane: no thread, no cost.
/// Threads:  one caller at a time.
/// Promises: run() hands items out dynamically, so that a lane whose core is taken away costs its
///           share and no more; an op's start and end cost about a microsecond while work follows
///           work (lanes spin, then yield, then sleep).
class LanePool {
 public:
  explicit LanePool(int lanes);
  ~LanePool();
  LanePool(const LanePool&) = delete;
  LanePool& operator=(const LanePool&) = delete;

  int lanes() const;

  /// Calls body(item, lane) for every item in [0, items), each once, on any lane; returns when all
  /// are done. `body` must not throw. A template over the body avoids std::function's allocation.
  template <class Body>
  void run(int64_t items, const Body& body) {
    run_erased(items, &body, [](const void* b, int64_t item, int lane) {
      (*static_cast<const Body*>(b))(item, lane);
    });
  }

 private:
  using Call = void (*)(const void* body, int64_t item, int lane);
  void run_erased(int64_t items, const void* body, Call call);
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace fastserve
