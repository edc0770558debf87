#include "tests/gpu/stub_driver/state.h"

#include "tests/gpu/stub_driver/stub_driver.h"

namespace stub_driver {

State& state() {
  static State* const only = new State;  // outlives whatever the plugin does at exit
  return *only;
}

cudaError_t enter(const char* call) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  const int at = static_cast<int>(s.calls.size());
  s.calls.emplace_back(call);
  if (s.fail_at == at && s.lose) s.lost = true;
  if (s.fail_at != at && !s.lost) return cudaSuccess;
  return s.last = static_cast<cudaError_t>(s.fail_code);
}

namespace {

class StateControl final : public Control {
 public:
  Live live() const override {
    State& s = state();
    std::lock_guard lock(s.mutex);
    return {static_cast<int>(s.allocations.size()), static_cast<int>(s.streams.size()),
            static_cast<int>(s.events.size()), static_cast<int>(s.graphs.size())};
  }
  std::vector<std::string> calls() const override {
    State& s = state();
    std::lock_guard lock(s.mutex);
    return s.calls;
  }
  int launches() const override {
    State& s = state();
    std::lock_guard lock(s.mutex);
    return s.launches;
  }
  void fail(int nth, int code, bool lost) override {
    State& s = state();
    std::lock_guard lock(s.mutex);
    s.fail_at = nth;
    s.fail_code = code;
    s.lose = lost;
  }
  void stall() override {
    State& s = state();
    std::lock_guard lock(s.mutex);
    s.stalled = true;
  }
  int waiting() const override {
    State& s = state();
    std::lock_guard lock(s.mutex);
    return s.waiting;
  }
  void reset() override {
    State& s = state();
    std::lock_guard lock(s.mutex);
    s.calls.clear();
    s.launches = 0;
    s.fail_at = -1;
    s.lose = s.lost = s.stalled = false;
    s.last = cudaSuccess;
    s.captures = nullptr;
    s.reached.notify_all();
  }
};

}  // namespace
}  // namespace stub_driver

extern "C" __attribute__((visibility("default"))) stub_driver::Control* stub_driver_control() {
  static stub_driver::StateControl control;
  return &control;
}
