#include "cluster/duty_runner.h"

#include <algorithm>

namespace fastserve {

struct DutyRunner::Running {
  ~Running() {
    if (thread.joinable()) thread.join();
  }
  std::thread thread;
  CancelFlag cancel;
  std::mutex mutex;
  DutyReport report;   // guarded by mutex, as is ended
  bool ended = false;  // the thread does nothing more
};

DutyRunner::~DutyRunner() {
  for (const auto& [id, running] : running_) running->cancel.raise();
  running_.clear();  // joins
}

void DutyRunner::set(std::vector<DutyOrder> orders) {
  const std::lock_guard lock(mutex_);
  orders_ = std::move(orders);
  keep_to_orders();
}

void DutyRunner::keep_to_orders() {
  for (auto at = running_.begin(); at != running_.end();) {
    Running& running = *at->second;
    const bool wanted = std::any_of(orders_.begin(), orders_.end(),
                                    [&](const DutyOrder& order) { return order.id == at->first; });
    if (!wanted) running.cancel.raise();
    std::unique_lock state(running.mutex);
    const bool over = running.ended && running.cancel.raised();
    state.unlock();
    at = over ? running_.erase(at) : std::next(at);
  }
  for (const DutyOrder& order : orders_) {
    if (running_.contains(order.id)) continue;
    const auto running = std::make_shared<Running>();
    running->report.id = order.id;
    running_[order.id] = running;
    running->thread = std::thread([work = &work_, order, now = running.get()] {
      const auto tell = [now, &order](const DutyReport& report) {
        const std::lock_guard lock(now->mutex);
        now->report = report;
        now->report.id = order.id;
      };
      const auto result = (*work)(order, tell, now->cancel);
      const std::lock_guard lock(now->mutex);
      now->report.state = result.ok() ? DutyReport::State::kFinished : DutyReport::State::kFailed;
      if (result.ok())
        now->report.result = *result;
      else
        now->report.error = result.error();
      now->ended = true;
    });
  }
}

std::vector<DutyReport> DutyRunner::reports() {
  const std::lock_guard lock(mutex_);
  keep_to_orders();
  std::vector<DutyReport> all;
  for (const auto& [id, running] : running_) {
    const std::lock_guard state(running->mutex);
    if (!running->cancel.raised()) all.push_back(running->report);
  }
  return all;
}

}  // namespace fastserve
