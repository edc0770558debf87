// Whole jobs, run by real actors over a made-up model.
#include <doctest/doctest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "jobs.h"
#include "tests/thread_count.h"

using namespace fastserve;

namespace {

/// Tells its watcher each time a unit begins; fails when told to.
class WatchedSource final : public GradientSource {
 public:
  WatchedSource(FakeBackend& backend, std::function<Status()> begin)
      : source_(backend), begin_(std::move(begin)) {}
  Result<double> run(const Microbatch& batch, float scale, float* grad) override {
    FS_TRY(begin_());
    return source_.run(batch, scale, grad);
  }
  void add(float* into, const float* other) override { source_.add(into, other); }
  size_t bytes() const override { return 0; }

 private:
  FakeSource source_;
  std::function<Status()> begin_;
};

/// A backend that calls `begin(trainer)` before every unit of work.
class WatchedBackend final : public TrainBackend {
 public:
  explicit WatchedBackend(std::function<Status(int trainer)> begin) : begin_(std::move(begin)) {}
  std::span<float> masters() override { return fake_.masters(); }
  const std::vector<ParameterTile>& tiles() const override { return fake_.tiles(); }
  void refresh(const ParameterTile& tile) override { fake_.refresh(tile); }
  const TrainOps& ops() const override { return fake_.ops(); }
  Result<std::unique_ptr<GradientSource>> make_source(int, int) override {
    return std::unique_ptr<GradientSource>(std::make_unique<WatchedSource>(
        fake_, [this, trainer = sources_++] { return begin_(trainer); }));
  }
  Result<std::unique_ptr<DeviceBuffer>> allocate(size_t bytes) override {
    return fake_.allocate(bytes);
  }
  size_t bytes() const override { return 0; }
  std::string description() const override { return "watched"; }
  std::string numerics_id() const override { return fake_.numerics_id(); }

 private:
  FakeBackend fake_;
  std::function<Status(int)> begin_;
  int sources_ = 0;
};

}  // namespace

TEST_CASE("two trainers at once take a real model to the bits that one takes it to") {
  CHECK(hash_of(run(real_job(2, 1, Precision::kBFloat16)).weights) ==
        hash_of(run(real_job(1, 1, Precision::kBFloat16)).weights));
}

TEST_CASE("a job run by 1, 2, 3 or 7 trainers and any shards ends in the same bits") {
  const uint64_t expected = hash_of(run(made_up_job(1, 1)).weights);
  for (const int trainers : {2, 3, 7})
    for (const int shards : {1, 2, 5}) {
      const TrainOutcome outcome = run(made_up_job(trainers, shards));
      CHECK(hash_of(outcome.weights) == expected);
      CHECK(outcome.end == TrainEnd::kAllSteps);
      CHECK(outcome.steps == 20);
      CHECK(outcome.losses.size() == 20);
    }
}

TEST_CASE("trainers that fail in the middle of a unit change nothing but the time") {
  const uint64_t expected = hash_of(run(made_up_job(1, 1)).weights);
  for (const int fatal : {1, 5, 17, 60}) {
    std::atomic<int> begun = 0;
    TrainingSystem::Config config = made_up_job(3, 2);
    config.backend = std::make_shared<WatchedBackend>([&](int trainer) -> Status {
      if (trainer != 0 && begun++ >= fatal)
        return Error{ErrorCode::kUnavailable, "the device is gone", "", ""};
      return {};
    });
    CHECK(hash_of(run(std::move(config)).weights) == expected);
  }
}

TEST_CASE("a trainer that is killed is replaced by the others, with the same bits") {
  const uint64_t expected = hash_of(run(made_up_job(1, 1)).weights);
  for (const int64_t at : {1, 2, 7, 13}) {
    std::atomic<TrainingSystem*> system = nullptr;
    std::mutex mutex;
    std::condition_variable changed;
    bool reached = false, killed = false;
    TrainingSystem::Config config = made_up_job(3, 2);
    config.progress = [&](const TrainProgress& progress) {
      if (progress.step != at || progress.validation_loss) return;
      std::unique_lock lock(mutex);
      reached = true;
      changed.notify_all();
      changed.wait(lock, [&] { return killed; });
    };
    auto started = TrainingSystem::start(std::move(config));
    REQUIRE(started.ok());
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return reached; });
      (*started)->kill_trainer(2);
      (*started)->kill_trainer(0);
      killed = true;
      changed.notify_all();
    }
    const auto outcome = (*started)->wait();
    REQUIRE(outcome.ok());
    CHECK(hash_of(outcome->weights) == expected);
  }
}

TEST_CASE("when the last trainer fails the job ends with that trainer's error") {
  TrainingSystem::Config config = made_up_job(2, 1);
  config.backend = std::make_shared<WatchedBackend>([](int) -> Status {
    return Error{ErrorCode::kUnavailable, "the device is gone", "", ""};
  });
  auto system = TrainingSystem::start(std::move(config));
  REQUIRE(system.ok());
  const auto outcome = (*system)->wait();
  REQUIRE_FALSE(outcome.ok());
  CHECK(outcome.error().what == "the device is gone");
}

TEST_CASE("a job interrupted and resumed at any step ends in the same bits") {
  const uint64_t expected = hash_of(run(made_up_job(1, 1)).weights);
  for (int64_t at = 0; at < 20; at += 3) {
    Folder folder;
    CancelFlag cancel;
    TrainingSystem::Config config = made_up_job(2, 2);
    config.checkpoint_directory = folder.path;
    config.cancel = &cancel;
    config.progress = [&](const TrainProgress& progress) {
      if (progress.step >= at) cancel.raise();
    };
    if (at == 0) cancel.raise();
    const TrainOutcome first = run(std::move(config));
    CHECK(first.end == TrainEnd::kCancelled);
    CHECK(first.checkpoint.ok());
    // The step after may be under way by the time progress is told.
    CHECK(first.steps >= at);
    CHECK(first.steps <= at + 1);
    config = made_up_job(3, 1);
    config.checkpoint_directory = folder.path;
    config.resume = TrainingSystem::Resume::kRequired;
    const TrainOutcome second = run(std::move(config));
    CHECK(second.steps == 20);
    CHECK(second.losses.size() == static_cast<size_t>(20 - first.steps));
    CHECK(hash_of(second.weights) == expected);
  }
}

TEST_CASE("a job cancelled in the middle of a step drops that step and resumes in the same bits") {
  const uint64_t expected = hash_of(run(made_up_job(1, 1)).weights);
  for (const int fatal : {1, 4, 9, 30, 100}) {
    Folder folder;
    CancelFlag cancel;
    std::atomic<int> begun = 0;
    TrainingSystem::Config config = made_up_job(2, 2);
    config.checkpoint_directory = folder.path;
    config.cancel = &cancel;
    config.backend = std::make_shared<WatchedBackend>([&](int) -> Status {
      if (++begun == fatal) cancel.raise();
      return {};
    });
    const TrainOutcome first = run(std::move(config));
    CHECK(first.end == TrainEnd::kCancelled);
    CHECK(begun <= fatal + 1);  // what the other trainer was at, and nothing more
    config = made_up_job(3, 1);
    config.checkpoint_directory = folder.path;
    config.resume = TrainingSystem::Resume::kRequired;
    CHECK(hash_of(run(std::move(config)).weights) == expected);
  }
}

TEST_CASE(
    "a job cancelled before its last evaluation is not finished, and resumes to the same one") {
  const TrainOutcome expected = run(made_up_job(1, 1));
  Folder folder;
  CancelFlag cancel;
  TrainingSystem::Config config = made_up_job(2, 1);
  config.checkpoint_directory = folder.path;
  config.cancel = &cancel;
  config.progress = [&](const TrainProgress& progress) {
    if (progress.step == 20) cancel.raise();
  };
  CHECK(run(std::move(config)).end == TrainEnd::kCancelled);
  config = made_up_job(1, 2);
  config.checkpoint_directory = folder.path;
  const TrainOutcome second = run(std::move(config));
  CHECK(second.end == TrainEnd::kAllSteps);
  CHECK(second.validation_loss == expected.validation_loss);
  CHECK(second.best_weights == expected.best_weights);
}

TEST_CASE("the best weights survive a resumption") {
  Folder folder;
  TrainingSystem::Config config = made_up_job(2, 1);
  config.checkpoint_directory = folder.path;
  const TrainOutcome first = run(std::move(config));
  config = made_up_job(2, 1);
  config.checkpoint_directory = folder.path;
  const TrainOutcome again = run(std::move(config));
  CHECK(again.losses.empty());  // there was nothing left to do
  CHECK(again.best_weights == first.best_weights);
  CHECK(again.best_validation_loss == first.best_validation_loss);
  CHECK(again.weights == first.weights);
  config = made_up_job(2, 1);
  config.checkpoint_directory = folder.path;
  config.resume = TrainingSystem::Resume::kNever;
  CHECK(TrainingSystem::start(std::move(config)).error().code == ErrorCode::kAlreadyExists);
}

TEST_CASE("two jobs run side by side, and no thread is left of them") {
  const auto before = thread_ids();
  {
    auto first = TrainingSystem::start(made_up_job(2, 2));
    auto second = TrainingSystem::start(made_up_job(3, 1));
    REQUIRE((first.ok() && second.ok()));
    CHECK(hash_of((*first)->wait()->weights) == hash_of((*second)->wait()->weights));
  }
  CHECK(threads_left_since(before) == 0);
}

TEST_CASE("a system can be destroyed in the middle of its job") {
  const auto before = thread_ids();
  TrainingSystem::Config config = made_up_job(3, 2);
  config.spec.steps = 1'000'000;
  auto system = TrainingSystem::start(std::move(config));
  REQUIRE(system.ok());
  *system = nullptr;
  CHECK(threads_left_since(before) == 0);
}

TEST_CASE("a job that needs more memory than there is says how much") {
  TrainingSystem::Config config = made_up_job(1, 1);
  config.backend = nullptr;
  config.initial_weights.clear();
  config.spec = find_preset("tiny")->spec;
  config.spec.model.vocab_size = 65;
  config.memory_limit = 1000;
  const auto system = TrainingSystem::start(std::move(config));
  REQUIRE_FALSE(system.ok());
  CHECK(system.error().code == ErrorCode::kResourceExhausted);
  CHECK(system.error().what.find("1000 B can be had") != std::string::npos);
}

TEST_CASE("a token outside the model's vocabulary and an absurd number of actors are refused") {
  TrainingSystem::Config config = real_job(1, 1, Precision::kFloat32);
  config.spec.model.vocab_size = 40;  // the data goes up to 49
  const auto system = TrainingSystem::start(std::move(config));
  REQUIRE_FALSE(system.ok());
  CHECK(system.error().what == "hold the token 49, outside the model's vocabulary of 40");
  for (const int count : {-1, 5000}) {
    CHECK(TrainingSystem::start(made_up_job(count, 1)).error().where == "trainers");
    CHECK(TrainingSystem::start(made_up_job(1, count)).error().where == "shards");
  }
}
