#include "train/plan.h"

#include <algorithm>
#include <bit>

namespace fastserve {
namespace {

constexpr int64_t kSmall = 3'000'000;   // parameters: gradients stay in the caches
constexpr int64_t kLarge = 30'000'000;  // parameters: a gradient buffer is expensive

}  // namespace

int64_t count_parameters(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size, vocab = config.vocab_size, head = config.head_dim;
  int64_t total = vocab * hidden * (config.tied_embeddings ? 1 : 2);
  if (!config.rope) total += config.max_positions * hidden;
  const int64_t norm = hidden * (config.norm == NormKind::kLayerNorm ? 2 : 1);
  for (int layer = 0; layer < config.layers; layer++) {
    const int64_t width = config.mlp_width(layer), qkv = config.qkv_width();
    const int64_t up = width * (config.mlp == MlpKind::kSwiGlu ? 2 : 1);
    total += qkv * hidden + config.heads * head * hidden + (up + width) * hidden + 2 * norm;
    if (config.qkv_bias) total += qkv;
    if (config.output_bias) total += hidden;
    if (config.mlp_bias) total += up + hidden;
    if (config.qk_norm) total += 2 * head;
  }
  return total + norm;
}

namespace {

/// Activations of one token.
uint64_t row_bytes(const TrainSpec& spec, Recompute recompute) {
  const ModelConfig& model = spec.model;
  const uint64_t width = spec.precision == Precision::kFloat32 ? 4 : 2;
  uint64_t row = static_cast<uint64_t>(model.vocab_size) * width;  // dlogits
  const uint64_t hidden = model.hidden_size, qkv = model.qkv_width();
  uint64_t layers = 0, largest = 0;  // without their input
  for (int layer = 0; layer < model.layers; layer++) {
    const uint64_t ff = model.mlp_width(layer);
    const uint64_t slope = model.mlp == MlpKind::kSwiGlu ? 2 * ff : ff;
    const uint64_t kept = 4 * hidden + width * (3 * hidden + qkv + ff + slope);
    layers += kept;
    largest = std::max(largest, kept);
  }
  row += static_cast<uint64_t>(model.layers) * 4 * hidden +
         (recompute == Recompute::kLayer ? largest : layers);
  return row;
}

}  // namespace

int choose_device_microbatches(const TrainSpec& spec) {
  // Beside a model that fits with it on a card of 80 GiB. A smaller card computes layers again.
  constexpr uint64_t kMost = uint64_t{24} << 30;
  const int64_t sequences = int64_t{spec.batch} * spec.accumulation;
  const auto rows = static_cast<uint64_t>(sequences * spec.block);
  const uint64_t bytes = rows * row_bytes(spec, Recompute::kNone);
  return static_cast<int>(
      std::clamp<int64_t>(static_cast<int64_t>((bytes + kMost - 1) / kMost), 1, sequences));
}

int choose_microbatches(const TrainSpec& spec) {
  const int64_t sequences = int64_t{spec.batch} * spec.accumulation;
  const int64_t rows = sequences * spec.block, parameters = count_parameters(spec.model);
  if (parameters >= kLarge) {
    constexpr int64_t kMostRows = 1024;
    return static_cast<int>(std::clamp<int64_t>((rows + kMostRows - 1) / kMostRows, 1, sequences));
  }
  const int64_t target = parameters < kSmall ? 192 : 512;
  constexpr int64_t kMany = 32, kMostRows = 2048;
  int64_t parts = std::clamp<int64_t>(rows / target, 4, kMany);
  parts = std::max(parts, (rows + kMostRows - 1) / kMostRows);
  return static_cast<int>(std::clamp<int64_t>(parts, 1, sequences));
}

TrainPlan plan_training(const TrainSpec& spec, const TrainPlacement& placement, int cores) {
  TrainPlan plan;
  plan.sequences = spec.batch * spec.accumulation;
  plan.microbatches = spec.microbatches > 0 ? spec.microbatches : choose_microbatches(spec);
  plan.max_rows = (plan.sequences + plan.microbatches - 1) / plan.microbatches * spec.block;
  plan.tokens_per_step = int64_t{plan.sequences} * spec.block;
  plan.lanes = placement.lanes > 0 ? placement.lanes : cores;
  const bool large = count_parameters(spec.model) >= kLarge;
  // Large models: one trainer whose lanes split each op, so that activations and gradients exist
  // once.
  plan.trainers = placement.trainers > 0 ? placement.trainers : large ? 1 : plan.lanes;
  plan.trainers = std::min(plan.trainers, plan.microbatches);  // one more would only wait
  plan.shards = placement.shards > 0 ? placement.shards : plan.lanes;
  const auto parts = static_cast<uint32_t>(plan.microbatches);
  const auto wanted =
      static_cast<uint32_t>(large ? plan.trainers + 1 : std::max(8, 4 * plan.trainers));
  plan.unit = parts <= wanted ? 1 : std::bit_floor(parts / wanted);
  // Of a card's memory a unit takes as much as all parameters: as few as keep all cards at work.
  plan.cards = placement.cards;
  plan.reduce = spec.reduce;
  if (plan.cards > 1)
    plan.unit = std::bit_floor(std::max(1U, parts / static_cast<uint32_t>(plan.trainers)));
  return plan;
}

Status check_for_one_process(const TrainSpec& spec) {
  const auto refused = [](const std::string& value, const char* field) {
    return Error{ErrorCode::kInvalidArgument, "is " + value + ", and one process has one node",
                 field, "leave it out, or give --cluster HOST:PORT"};
  };
  if (!spec.consistency.exact()) return refused(spec.consistency.text(), "consistency");
  if (spec.replicas > 0) return refused(std::to_string(spec.replicas), "replicas");
  return {};
}

Status check_reduce(const TrainSpec& spec, const TrainPlan& plan) {
  if (spec.reduce == GradientReduce::kTree) return {};
  const auto refused = [](const std::string& what, const std::string& hint) {
    return Error{ErrorCode::kInvalidArgument, "is ring, and " + what, "reduce", hint};
  };
  if (plan.cards == 1)
    return refused("there are not several cards that hold a part of the optimiser each",
                   "--reduce tree; or name cards (--device cuda:all), with --optimiser device");
  for (const auto& [count, what] :
       {std::pair(plan.microbatches, "microbatches"), std::pair(plan.trainers, "trainers")})
    if (count < plan.cards)
      return refused(std::to_string(plan.cards) + " cards need as many " + what + ", not " +
                         std::to_string(count),
                     std::string("--reduce tree, more ") + what + ", or fewer cards");
  return {};
}

int gradient_buffers(const TrainPlan& plan) {
  const auto units = StepLayout(static_cast<uint32_t>(plan.microbatches)).units(plan.unit).size();
  const auto inside = std::bit_width(plan.unit) - 1;
  return static_cast<int>(units) + static_cast<int>(inside) * plan.trainers;
}

int card_gradient_buffers(const TrainPlan& plan) {
  if (plan.cards == 1) return gradient_buffers(plan);
  const auto among = [&](int n) { return (n + plan.cards - 1) / plan.cards; };
  if (plan.reduce == GradientReduce::kRing)  // of one run, which its trainer sums
    return std::bit_width(static_cast<unsigned>(among(plan.microbatches)));
  const auto units = StepLayout(static_cast<uint32_t>(plan.microbatches)).units(plan.unit).size();
  const int all = static_cast<int>(units), inside = std::bit_width(plan.unit) - 1;
  return std::min(all, among(all) + 1) + inside * among(plan.trainers);
}

MemoryEstimate estimate_memory(const TrainSpec& spec, const TrainPlan& plan, bool checkpoints,
                               Recompute recompute) {
  const auto parameters = static_cast<uint64_t>(count_parameters(spec.model));
  MemoryEstimate bytes;
  bytes.weights = parameters * (4 + 2 * (spec.precision == Precision::kBFloat16 ? 2 : 4));
  bytes.optimiser = parameters * 8;
  bytes.gradients = parameters * 4 * static_cast<uint64_t>(gradient_buffers(plan));
  const uint64_t row = row_bytes(spec, recompute);
  bytes.activations =
      row * static_cast<uint64_t>(plan.max_rows) * static_cast<uint64_t>(plan.trainers);
  bytes.snapshots = parameters * 4 * (checkpoints ? 4 : 1);  // weights, m, v; the best weights
  return bytes;
}

MemoryEstimate MemoryEstimate::beside_a_device(const TrainSpec& spec, bool resident) const {
  MemoryEstimate host = *this;
  host.weights = resident ? 0 : static_cast<uint64_t>(count_parameters(spec.model)) * sizeof(float);
  if (resident) host.optimiser = host.gradients = 0;
  host.activations = 0;
  return host;
}

}  // namespace fastserve
