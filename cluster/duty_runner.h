// What a node does for its coordinator beside training, each in a thread of its own.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/cancel.h"
#include "cluster/duty.h"

namespace fastserve {

/// Keeps to the orders: begins what is new, ends what is no longer among them. What has ended by
/// itself is not begun again, and stays among the reports until its order is gone.
///
/// Owns:    a thread for each duty. Destruction ends them all and waits for them.
/// Threads: any.
class DutyRunner {
 public:
  using Tell = std::function<void(const DutyReport& now)>;  ///< the id is filled in
  /// Does the duty until it is done or `cancel` is raised. On a thread of its own.
  using Work = std::function<Result<Json>(const DutyOrder& order, const Tell& tell,
                                          const CancelFlag& cancel)>;

  explicit DutyRunner(Work work) : work_(std::move(work)) {}
  ~DutyRunner();

  /// These are the orders from now on.
  void set(std::vector<DutyOrder> orders);
  /// How they go. Also begins what had to wait for its own end.
  std::vector<DutyReport> reports();

 private:
  struct Running;
  void keep_to_orders();

  const Work work_;
  std::mutex mutex_;
  std::vector<DutyOrder> orders_;
  std::map<std::string, std::shared_ptr<Running>> running_;  // by id
};

}  // namespace fastserve
