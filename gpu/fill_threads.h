// Threads of the host that fill pieces of memory, in order.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace fastserve::gpu {

/// A job is pieces of `parts` parts each, numbered from 0. The threads take parts in their order,
/// but no further than pieces have been granted; whoever waits for a piece fills with them.
///
/// Owns:     its threads, from the first job of more than one part until it ends.
/// Threads:  one caller. Threads without work look for it for a while, then sleep.
/// Promises: each part of a granted piece is filled once, by the time that its piece is finished.
class FillThreads {
 public:
  using Fill = std::function<void(size_t piece, size_t part)>;
  /// As many threads as the host has, up to `most`; the caller is one of them. At most `ahead`
  /// pieces are granted and not finished.
  explicit FillThreads(size_t ahead, unsigned most = 16);
  FillThreads(const FillThreads&) = delete;
  FillThreads& operator=(const FillThreads&) = delete;
  ~FillThreads();

  /// Every granted piece of the job before has been finished.
  void begin(size_t parts, Fill fill);
  /// The job's next piece may be filled.
  void grant();
  /// Returns when the job's oldest piece that was not finished is filled.
  void finish();

 private:
  bool fill_one();
  void work();

  const size_t ahead_;
  const unsigned others_;
  std::vector<std::thread> threads_;
  // The job; written while no part is left to be taken.
  Fill fill_;
  size_t parts_ = 1, first_part_ = 0;
  size_t granted_ = 0, finished_ = 0;        ///< pieces, of the caller alone
  std::vector<std::atomic<size_t>> filled_;  ///< parts of each of `ahead` pieces
  // Counted over all jobs, so that who looks at an old limit takes nothing that was not granted.
  std::atomic<size_t> next_ = 0, limit_ = 0;
  std::atomic<unsigned> sleeping_ = 0;
  std::mutex mutex_;
  std::condition_variable woken_;
  bool stop_ = false;  ///< guarded by mutex_
};

}  // namespace fastserve::gpu
