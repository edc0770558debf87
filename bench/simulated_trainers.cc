#include "simulated_trainers.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <sstream>

#include "cpu/cpu_device.h"
#include "train/device_backend.h"
#include "train/gradient_codec.h"
#include "train/sampler.h"
#include "train/schedule.h"
#include "train/weight_codec.h"

namespace fastserve {
namespace {

using Floats = std::vector<float>;
using Frame = std::vector<std::byte>;

/// AdamW's state of one set of weights.
struct Moments {
  explicit Moments(size_t n) : m(n), v(n) {}
  Floats m, v;
  int64_t updates = 0;
};

class Simulation {
 public:
  Simulation(const SimulatedJob& job, const Wire& wire, int trainers, uint64_t seed)
      : spec_(job.spec),
        plan_(job.plan),
        wire_(wire),
        trainers_(trainers),
        sampler_(job.data->train, {spec_.block, plan_.sequences, plan_.microbatches}, seed),
        evaluation_(job.data->validation, spec_.block, 0, plan_.max_rows),
        layout_(spec_.model) {
    spec_.seed = seed;
  }

  Result<Trained> run();

 private:
  Status open();
  Status step_together(int64_t step);
  Status round_apart(int64_t first);
  /// The trainer's microbatches of a step, summed in order.
  Result<Floats> gradient_of(int trainer, int64_t step, float scale);
  void update(std::span<float> weights, Moments& moments, const Floats& gradient, int64_t step);
  void take(std::span<const float> weights);
  std::span<float> slice(Floats& all) { return std::span(all).subspan(from_, codec_->elements()); }
  Status push(int trainer, Floats& gradient);
  Status give_back();
  Result<double> evaluate();

  TrainSpec spec_;
  TrainPlan plan_;
  Wire wire_;
  int trainers_;
  Sampler sampler_;
  EvaluationPlan evaluation_;
  ParameterLayout layout_;
  std::unique_ptr<TrainBackend> backend_;
  std::unique_ptr<GradientSource> source_;
  std::unique_ptr<GradientCodec> codec_;
  std::unique_ptr<WeightCodec> back_;
  std::unique_ptr<OuterOptimiser> outer_;
  size_t from_ = 0;
  std::vector<ErrorFeedback> feedback_;
  std::vector<Moments> moments_;  // of the shard, or of each trainer
  Floats masters_, held_;         // the shard's, and what trainers have of them
  WeightShadow shadow_;
  uint64_t version_ = 0;
  Frame gradient_frame_, weight_frame_;
};

Status Simulation::open() {
  FS_ASSIGN(backend_, make_device_backend(spec_.model, spec_.precision, [](int lanes) {
              return make_cpu_device({lanes, best_isa()});
            }));
  FS_ASSIGN(source_, backend_->make_source(1, plan_.max_rows));
  const auto& tiles = backend_->tiles();
  codec_ = std::make_unique<GradientCodec>(wire_.gradients, tiles);
  back_ = std::make_unique<WeightCodec>(wire_.weights, tiles, only_multiplied(layout_, tiles));
  from_ = codec_->begin();
  feedback_.resize(static_cast<size_t>(trainers_));
  masters_.resize(backend_->elements());
  initialise_parameters(spec_.model, layout_, spec_.seed, masters_);
  held_ = masters_;
  shadow_ = back_->shadow_of(slice(masters_));
  gradient_frame_.resize(codec_->encoded_bytes());
  weight_frame_.resize(back_->encoded_bytes());
  const int optimisers = wire_.local_steps > 0 ? trainers_ : 1;
  for (int i = 0; i < optimisers; i++) moments_.emplace_back(masters_.size());
  if (wire_.local_steps > 0) outer_ = std::make_unique<OuterOptimiser>(wire_.outer, masters_);
  take(held_);
  return {};
}

void Simulation::take(std::span<const float> weights) {
  std::copy(weights.begin(), weights.end(), backend_->masters().begin());
  backend_->refresh_all();
}

Result<Floats> Simulation::gradient_of(int trainer, int64_t step, float scale) {
  Floats sum(masters_.size()), one(masters_.size());
  const int share = plan_.microbatches / trainers_;
  for (int g = 0; g < share; g++) {
    const Microbatch batch = sampler_.microbatch(step, trainer * share + g);
    FS_TRY(source_->run(batch, scale, g == 0 ? sum.data() : one.data()));
    if (g > 0) source_->add(sum.data(), one.data());
  }
  return sum;
}

void Simulation::update(std::span<float> weights, Moments& moments, const Floats& gradient,
                        int64_t step) {
  double squares = 0;
  for (const ParameterTile& tile : backend_->tiles())
    squares += backend_->ops().sum_squares(gradient.data() + tile.offset, tile.size);
  const double norm = std::sqrt(squares);
  moments.updates++;
  for (const ParameterTile& tile : backend_->tiles()) {
    AdamW op{};
    op.param = weights.data() + tile.offset;
    op.m = moments.m.data() + tile.offset;
    op.v = moments.v.data() + tile.offset;
    op.grad = gradient.data() + tile.offset;
    op.n = tile.size;
    op.learning_rate = static_cast<float>(learning_rate_at(spec_, step));
    op.beta1 = static_cast<float>(spec_.beta1);
    op.beta2 = static_cast<float>(spec_.beta2);
    op.epsilon = static_cast<float>(spec_.epsilon);
    op.weight_decay = tile.decay ? static_cast<float>(spec_.weight_decay) : 0.0f;
    op.step = moments.updates;
    op.grad_scale = static_cast<float>(std::min(1.0, spec_.clip_norm / (norm + 1e-6)));
    backend_->ops().adamw(op);
  }
}

/// Over the wire: `gradient` becomes what the shard reads.
Status Simulation::push(int trainer, Floats& gradient) {
  FS_TRY(codec_->encode(slice(gradient), feedback_[static_cast<size_t>(trainer)], gradient_frame_));
  return codec_->decode(gradient_frame_, slice(gradient));
}

Status Simulation::give_back() {
  FS_TRY(back_->encode(slice(masters_), shadow_, weight_frame_));
  FS_TRY(back_->decode(weight_frame_, slice(held_), version_));
  take(held_);
  return {};
}

Status Simulation::step_together(int64_t step) {
  std::vector<Floats> read;
  const float scale = 1 / static_cast<float>(plan_.tokens_per_step);
  for (int trainer = 0; trainer < trainers_; trainer++) {
    FS_ASSIGN(Floats gradient, gradient_of(trainer, step, scale));
    FS_TRY(push(trainer, gradient));
    read.push_back(std::move(gradient));
  }
  for (size_t stride = 1; stride < read.size(); stride *= 2)
    for (size_t i = 0; i + stride < read.size(); i += 2 * stride)
      source_->add(read[i].data(), read[i + stride].data());
  update(masters_, moments_[0], read[0], step);
  return give_back();
}

Status Simulation::round_apart(int64_t first) {
  const float scale = static_cast<float>(trainers_) / static_cast<float>(plan_.tokens_per_step);
  for (int trainer = 0; trainer < trainers_; trainer++) {
    take(held_);
    for (int64_t step = first; step < first + wire_.local_steps; step++) {
      FS_ASSIGN(const Floats gradient, gradient_of(trainer, step, scale));
      update(backend_->masters(), moments_[static_cast<size_t>(trainer)], gradient, step);
      backend_->refresh_all();
    }
    Floats displacement = held_;
    const auto local = backend_->masters();
    for (size_t i = 0; i < local.size(); i++) displacement[i] -= local[i];
    FS_TRY(push(trainer, displacement));
    FS_TRY(outer_->add(outer_->round(), static_cast<uint32_t>(trainer), displacement));
  }
  outer_->step();
  std::copy(outer_->weights().begin(), outer_->weights().end(), masters_.begin());
  return give_back();
}

Result<double> Simulation::evaluate() {
  take(masters_);
  double sum = 0;
  for (uint32_t chunk = 0; chunk < evaluation_.chunks(); chunk++) {
    FS_ASSIGN(const double loss, source_->run(evaluation_.chunk(chunk), 0, nullptr));
    sum += loss;
  }
  return sum / static_cast<double>(evaluation_.counted());
}

Result<Trained> Simulation::run() {
  const auto start = std::chrono::steady_clock::now();
  FS_TRY(open());
  const int64_t stride = std::max(1, wire_.local_steps);
  for (int64_t step = 0; step + stride <= spec_.steps; step += stride)
    FS_TRY(wire_.local_steps > 0 ? round_apart(step) : step_together(step));
  Trained trained;
  const double each = static_cast<double>(stride) * static_cast<double>(layout_.trainable());
  trained.sent_bytes = static_cast<double>(gradient_frame_.size()) / each;
  trained.received_bytes = static_cast<double>(weight_frame_.size()) / each;
  FS_ASSIGN(trained.validation_loss, evaluate());
  trained.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return trained;
}

}  // namespace

Result<SimulatedJob> SimulatedJob::prepare(const std::string& preset, const Path& path,
                                           int64_t steps) {
  SimulatedJob job;
  FS_ASSIGN(const Preset found, find_preset(preset));
  job.spec = found.spec;
  if (steps > 0) job.spec.steps = steps;
  FS_ASSIGN(const Corpus corpus, Corpus::load(path));
  BpeTrainerOptions options;
  std::vector<std::string_view> texts;
  options.vocab_size = found.vocab_size;
  if (found.vocab_size == 0) {  // characters
    options.alphabet = BpeTrainerOptions::Alphabet::kSeenBytes;
    options.special_tokens.clear();
    for (const Corpus::Document& document : corpus.documents()) texts.push_back(document.text);
  } else {
    texts = training_texts(corpus, job.spec.validation_fraction);
  }
  FS_ASSIGN(const std::string json, train_bpe(texts, options));
  FS_ASSIGN(const auto tokenizer, Tokenizer::from_json(json, "tokenizer.json"));
  job.spec.model.vocab_size = tokenizer->vocab_size();
  FS_ASSIGN(Dataset data,
            Dataset::build(corpus, tokenizer.get(), job.spec.validation_fraction, job.spec.block));
  job.data = std::make_shared<Dataset>(std::move(data));
  job.plan = plan_training(job.spec, {}, 1);
  return job;
}

Result<Wire> Wire::parse(const std::string& text) {
  Wire wire;
  wire.text = text;
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, '/');) parts.push_back(part);
  if (parts.size() < 2 || parts.size() == 4 || parts.size() > 5)
    return Error{ErrorCode::kInvalidArgument, "is not GRADIENTS/WEIGHTS[/H[/RATE/MOMENTUM]]", text,
                 ""};
  FS_ASSIGN(wire.gradients, GradientFormat::parse(parts[0]));
  FS_ASSIGN(wire.weights, WeightsBack::parse(parts[1]));
  if (parts.size() > 2) wire.local_steps = std::atoi(parts[2].c_str());
  if (parts.size() > 4) {
    wire.outer.learning_rate = std::strtof(parts[3].c_str(), nullptr);
    wire.outer.momentum = std::strtof(parts[4].c_str(), nullptr);
  }
  wire.outer.local_steps = std::max(1, wire.local_steps);
  FS_TRY(wire.outer.validate());
  return wire;
}

Result<Trained> train_simulated(const SimulatedJob& job, const Wire& wire, int trainers,
                                uint64_t seed) {
  if (trainers < 1 || job.plan.microbatches % trainers != 0)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("do not divide {} microbatches", job.plan.microbatches),
                 fmt::format("{} trainers", trainers), ""};
  return Simulation(job, wire, trainers, seed).run();
}

}  // namespace fastserve
