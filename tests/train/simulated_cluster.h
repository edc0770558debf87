// A cluster without threads: messages wait in a heap and a seeded die says which comes next.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "fake_backend.h"
#include "train/gradient_worker.h"
#include "train/job.h"

namespace fastserve {

struct SimulatedCluster {
  struct Options {
    TrainSpec spec;
    int trainers = 1, shards = 1;
    uint32_t unit = 1;
    uint64_t seed = 1;
    int kills = 0;  ///< trainers lost at random moments (one always stays)
    int64_t interrupt_at =
        -1;  ///< steps after which the job is cancelled, in the midst of the next
    bool checkpoints = false;
  };
  struct Saved {
    JobState state;
    std::vector<float> weights, m, v;
  };

  explicit SimulatedCluster(Options given, const Saved* from = nullptr)
      : options(std::move(given)), rng(options.seed) {
    const TrainSpec& spec = options.spec;
    plan = plan_training(spec, {options.trainers, options.trainers, options.shards}, 2);
    plan.unit = options.unit;
    sampler.emplace(data->train, Sampler::Shape{spec.block, plan.sequences, plan.microbatches},
                    spec.seed);
    evaluation.emplace(data->validation, spec.block, 0, plan.max_rows);
    const std::vector<float> weights = from ? from->weights : FakeBackend::initial_weights();
    std::copy(weights.begin(), weights.end(), backend.masters().begin());
    backend.refresh_all();
    const JobState state = from ? from->state : JobState{};
    for (const auto& range : ParameterShard::ranges(backend, options.shards)) {
      shards.push_back(std::make_unique<ParameterShard>(
          backend, range, spec, StepLayout(static_cast<uint32_t>(plan.microbatches)),
          StepId{static_cast<uint64_t>(state.steps_done)}));
      if (from) shards.back()->restore(from->m, from->v);
    }
    for (int i = 0; i < options.trainers; i++)
      workers.push_back(std::make_unique<GradientWorker>(backend.make_source(1, 1).value(),
                                                         *sampler, &*evaluation, pool));
    TrainingJob::Setup setup;
    setup.spec = spec;
    setup.plan = plan;
    setup.shards = static_cast<int>(shards.size());
    setup.windows = sampler->windows();
    setup.evaluation_chunks = evaluation->chunks();
    setup.evaluation_counted = evaluation->counted();
    setup.checkpoints = options.checkpoints;
    setup.clock = &clock;
    setup.cancel = &cancel;
    job.emplace(std::move(setup), state);
  }

  /// Until the job finishes; the result is how.
  Result<TrainEnd> run() {
    for (uint32_t i = 0; i < workers.size(); i++) carry_out(job->trainer_joined({i}));
    for (int moves = 0; !end; moves++) {
      FS_CHECK(!pending.empty() && moves < 1'000'000);
      if (options.kills > 0 && moves > 0 && rng.below(40) == 0) kill_one();
      if (job->state().steps_done == options.interrupt_at) cancel.raise();
      const size_t pick = rng.below(pending.size());
      Message message = std::move(pending[pick]);
      pending.erase(pending.begin() + static_cast<ptrdiff_t>(pick));
      message.deliver();
    }
    return *end;
  }

  void kill_one() {
    if (alive() < 2) return;
    uint32_t victim;
    do victim = static_cast<uint32_t>(rng.below(workers.size()));
    while (workers[victim] == nullptr);
    workers[victim] = nullptr;
    options.kills--;
    // Its work is lost, and of what it sent only some arrives.
    std::erase_if(pending, [&](const Message& message) {
      return message.to == victim || (message.from == victim && rng.below(2) == 0);
    });
    carry_out(job->trainer_lost({victim}, {ErrorCode::kUnavailable, "was killed", "", ""}));
  }
  size_t alive() const {
    return static_cast<size_t>(std::count_if(workers.begin(), workers.end(),
                                             [](const auto& worker) { return worker != nullptr; }));
  }

  Saved saved() {
    Saved all{job->state(), {backend.masters().begin(), backend.masters().end()}, {}, {}};
    for (const auto& shard : shards) {
      const auto part = shard->snapshot();
      all.m.insert(all.m.end(), part->m.begin(), part->m.end());
      all.v.insert(all.v.end(), part->v.begin(), part->v.end());
    }
    return all;
  }

  struct Message {
    std::optional<uint32_t> from, to;  // trainers
    std::function<void()> deliver;
  };

  void post(std::function<void()> deliver, std::optional<uint32_t> from = {},
            std::optional<uint32_t> to = {}) {
    pending.push_back({from, to, std::move(deliver)});
  }
  void carry_out(Actions actions) {
    for (Action& action : actions) std::visit([&](auto& order) { carry_out(order); }, action);
  }
  void carry_out(GiveWork& order) {
    const uint32_t trainer = order.trainer.value;
    post([this, trainer, item = order.item] { compute(trainer, item); }, {}, trainer);
  }
  void compute(uint32_t trainer, const WorkItem& item) {
    auto done = workers[trainer]->compute(item).value();
    if (done.passed_by) return;
    if (done.gradient != nullptr)
      for (uint32_t s = 0; s < shards.size(); s++)
        post([=, this] { push(s, item, done.gradient); }, trainer);
    post([=, this] { carry_out(job->work_done({trainer}, item.round, item.unit, done.losses)); },
         trainer);
  }
  void push(uint32_t s, const WorkItem& item, const GradientHandle& gradient) {
    const auto added = shards[s]->add(item.step, item.subtree, gradient).value();
    if (added != ParameterShard::Added::kComplete) return;
    post([=, this, squares = shards[s]->squares()] {
      carry_out(job->shard_gathered({s}, item.step, squares));
    });
  }
  void carry_out(const Commit& commit) { commits.push_back(commit); }
  void carry_out(const CloseRound&) {}  // of jobs over nodes
  void carry_out(const ApplyStep& order) {
    for (uint32_t s = 0; s < shards.size(); s++)
      post([this, s, apply = order.order] {
        shards[s]->apply(apply);
        post([=, this] { carry_out(job->shard_ready({s}, apply.step)); });
      });
  }
  void carry_out(const SkipStep& order) {
    for (uint32_t s = 0; s < shards.size(); s++)
      post([this, s, step = order.step] {
        shards[s]->skip(step);
        post([=, this] { carry_out(job->shard_ready({s}, step)); });
      });
  }
  void carry_out(const HoldStill&) {}
  void carry_out(const KeepBest&) { kept_best++; }
  void carry_out(const TakeSnapshot&) {
    last_saved = saved();
    post([this] {
      carry_out(job->snapshot_taken());
      post([this] { carry_out(job->checkpoint_written({})); });
    });
  }
  void carry_out(const Report& order) {
    last_report = order.progress;
    if (order.progress.validation_loss) validation.push_back(*order.progress.validation_loss);
  }
  void carry_out(const Warn&) { warnings++; }
  void carry_out(const Finish& order) { end = order.end; }

  Options options;
  Rng rng;
  ManualClock clock;
  CancelFlag cancel;
  FakeBackend backend;
  std::shared_ptr<Dataset> data = made_up_dataset();
  TrainPlan plan;
  std::optional<Sampler> sampler;
  std::optional<EvaluationPlan> evaluation;
  GradientPool pool{[this] { return backend.allocate(FakeBackend::kElements * 4); }};
  std::vector<std::unique_ptr<ParameterShard>> shards;
  std::vector<std::unique_ptr<GradientWorker>> workers;
  std::optional<TrainingJob> job;
  std::vector<Message> pending;
  std::optional<Result<TrainEnd>> end;
  std::optional<Saved> last_saved;
  TrainProgress last_report;
  std::vector<double> validation;
  std::vector<Commit> commits;
  int kept_best = 0, warnings = 0;
};

inline TrainSpec made_up_spec() {
  TrainSpec spec;
  spec.block = 6;
  spec.batch = 7;
  spec.microbatches = 7;
  spec.precision = Precision::kFloat32;
  spec.steps = 12;
  spec.warmup_steps = 3;
  spec.learning_rate = 0.05;
  spec.evaluate_every = 5;
  spec.checkpoint_every = 4;
  return spec;
}

}  // namespace fastserve
