// What a job costs its coordinator, by the number of trainers: time and memory a step, early and
// late. The job and its ledger are the cluster's own; trainers and shards are answers that come at
// once, without sockets.
//   coordinator_load [trainers] [steps]
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <fstream>

#include "train/job.h"
#include "train/ledger_file.h"

using namespace fastserve;

namespace {

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

/// Resident memory of this process.
double megabytes() {
  std::ifstream file("/proc/self/statm");
  double pages = 0;
  file >> pages >> pages;
  return pages * static_cast<double>(::sysconf(_SC_PAGESIZE)) / 1e6;
}

TrainingJob::Setup setup_for(int trainers, int64_t steps, const Clock& clock) {
  TrainingJob::Setup setup;
  setup.spec.steps = steps;
  setup.spec.microbatches = 2 * trainers;
  setup.spec.batch = setup.spec.microbatches;
  setup.plan.sequences = setup.plan.microbatches = setup.spec.microbatches;
  setup.plan.trainers = setup.plan.shards = setup.plan.lanes = trainers;
  setup.plan.tokens_per_step = setup.spec.batch * int64_t{setup.spec.block};
  setup.shards = trainers;
  setup.windows = static_cast<uint64_t>(setup.spec.batch) * 16;
  setup.ranges = true;
  setup.clock = &clock;
  return setup;
}

class Load {
 public:
  Load(int trainers, int64_t steps)
      : trainers_(trainers), job_(setup_for(trainers, steps, clock_), JobState{}) {
    path_ = std::filesystem::temp_directory_path() / fmt::format("ledger-{}", ::getpid());
    ledger_ = LedgerFile::open(path_).value();
    LedgerBegin begin;
    begin.incarnation = 1;
    begin.sequences = begin.microbatches = static_cast<uint32_t>(2 * trainers);
    begin.windows = begin.sequences * uint64_t{16};
    const auto name = [](TrainerId trainer) { return fmt::format("node-{}", trainer.value); };
    FS_CHECK(ledger_->begin(begin, name).ok());
  }
  ~Load() { std::filesystem::remove(path_); }

  /// Prints a row for every eighth of the steps.
  void run(int64_t steps) {
    std::vector<TrainerId> all;
    for (int i = 0; i < trainers_; i++) all.push_back({static_cast<uint32_t>(i)});
    carry_out(job_.trainers_joined(all));
    double cpu = cpu_seconds();
    int64_t told = 0;
    while (!ended_) {
      FS_CHECK(!work_.empty());
      const GiveWork next = std::move(work_.front());
      work_.pop_front();
      answer(next);
      const int64_t done = job_.state().steps_done;
      if (done < told + steps / 8) continue;
      fmt::print("steps {:5} to {:5}: {:.2f} ms of CPU a step, {:.1f} MB resident\n", told, done,
                 1e3 * (cpu_seconds() - cpu) / static_cast<double>(done - told), megabytes());
      told = done;
      cpu = cpu_seconds();
    }
  }

 private:
  void answer(const GiveWork& given) {
    clock_.advance(std::chrono::microseconds(100));
    const WorkItem& item = given.item;
    const std::vector<double> losses(item.subtree.count, 1.0);
    microbatches_ += static_cast<int>(item.subtree.count);
    carry_out(job_.work_done(given.trainer, item.round, item.unit, losses));
    if (microbatches_ < 2 * trainers_) return;
    microbatches_ = 0;
    for (int s = 0; s < trainers_; s++)
      carry_out(job_.shard_gathered({static_cast<uint32_t>(s)}, item.step, {1.0, 1.0}));
  }
  void carry_out(Actions actions) {
    for (Action& action : actions) std::visit([&](auto& order) { heed(order); }, action);
  }
  void heed(GiveWork& order) { work_.push_back(std::move(order)); }
  void heed(ApplyStep& order) {
    for (int s = 0; s < trainers_; s++)
      carry_out(job_.shard_ready({static_cast<uint32_t>(s)}, order.order.step));
  }
  void heed(Finish& order) {
    FS_CHECK(order.end.ok());
    ended_ = true;
  }
  void heed(Commit& commit) { FS_CHECK(ledger_->append(commit).ok()); }
  template <class Order>
  void heed(Order&) {}

  const int trainers_;
  ManualClock clock_;
  TrainingJob job_;
  Path path_;
  std::unique_ptr<LedgerFile> ledger_;
  std::deque<GiveWork> work_;
  int microbatches_ = 0;
  bool ended_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  const int trainers = argc > 1 ? std::atoi(argv[1]) : 1000;
  const int64_t steps = argc > 2 ? std::atoll(argv[2]) : 800;
  fmt::print("{} trainers, {} shards, {} microbatches a step\n", trainers, trainers, 2 * trainers);
  Load(trainers, steps).run(steps);
}
