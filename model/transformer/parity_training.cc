// Ten steps of AdamW on recorded data.
#include <algorithm>
#include <cmath>

#include "model/transformer/parity_reference.h"

namespace fastserve {
namespace {

constexpr double kLoss = 5e-5, kNorm = 1e-5;
constexpr double kUpdate = 5e-3, kKeyBiasUpdate = 2e-2, kParameter = 1e-3;
/// The moments sum gradients (2e-5) of parameters that drift apart in their last digits.
constexpr double kMoment = 1e-4;

/// How the reference was trained; reference.json's "train" may say otherwise.
struct Recipe {
  double rate = 1e-3, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, decay = 0.1, clip = 1.0;
};

struct Training {
  std::unique_ptr<TrainOps> ops;
  std::unique_ptr<TrainWeights> weights;
  std::unique_ptr<TrainPass> pass;
  std::unique_ptr<DeviceBuffer> grad, m, v;
  std::vector<double> losses, norms;
};

Result<Recipe> read_recipe(const ParityReference& reference) {
  Recipe recipe;
  const Json* train = reference.json().find_set("train");
  if (!train) return recipe;
  FS_ASSIGN(recipe.rate, train->double_or("lr", recipe.rate));
  FS_ASSIGN(recipe.epsilon, train->double_or("eps", recipe.epsilon));
  FS_ASSIGN(recipe.decay, train->double_or("weight_decay", recipe.decay));
  FS_ASSIGN(recipe.clip, train->double_or("clip", recipe.clip));
  const Json* betas = train->find_set("betas");
  if (betas && betas->is_array() && betas->as_array().size() == 2 &&
      betas->as_array()[0].is_number() && betas->as_array()[1].is_number()) {
    recipe.beta1 = betas->as_array()[0].as_double();
    recipe.beta2 = betas->as_array()[1].as_double();
  }
  return recipe;
}

float* floats(const std::unique_ptr<DeviceBuffer>& buffer) {
  return static_cast<float*>(buffer->data());
}

Result<Training> prepare(const ParityModel& model, Device& device, int rows) {
  Training t;
  t.ops = device.make_train_ops(Precision::kFloat32);
  FS_ASSIGN(t.weights, TrainWeights::create(device, *t.ops, model.config, model.layout));
  device.copy_in(t.weights->masters().data(), model.weights.data(),
                 model.weights.size() * sizeof(float));
  t.weights->refresh_all(*t.ops);
  FS_ASSIGN(t.pass, TrainPass::create(device, *t.ops, model.config, model.layout, rows));
  const size_t bytes = model.layout.elements() * sizeof(float);
  FS_ASSIGN(t.grad, device.allocate(bytes));
  FS_ASSIGN(t.m, device.allocate(bytes));
  FS_ASSIGN(t.v, device.allocate(bytes));
  return t;
}

void train_step(const ParityModel& model, const Recipe& recipe, const Microbatch& batch,
                int64_t step, Training& t) {
  const double counted = static_cast<double>(std::max<int64_t>(1, batch.counted()));
  const double loss =
      t.pass->run(*t.weights, batch, static_cast<float>(1.0 / counted), floats(t.grad));
  t.losses.push_back(loss / counted);
  const double norm = std::sqrt(t.ops->sum_squares(floats(t.grad), model.layout.elements()));
  t.norms.push_back(norm);
  const double clip = std::min(1.0, recipe.clip / (norm + 1e-6));
  for (const TrainWeights::Tile& tile : t.weights->tiles()) {
    t.ops->adamw({.param = t.weights->masters().data() + tile.offset,
                  .m = floats(t.m) + tile.offset,
                  .v = floats(t.v) + tile.offset,
                  .grad = floats(t.grad) + tile.offset,
                  .n = tile.size,
                  .learning_rate = static_cast<float>(recipe.rate),
                  .beta1 = static_cast<float>(recipe.beta1),
                  .beta2 = static_cast<float>(recipe.beta2),
                  .epsilon = static_cast<float>(recipe.epsilon),
                  .weight_decay = tile.decay ? static_cast<float>(recipe.decay) : 0.0f,
                  .step = step,
                  .grad_scale = static_cast<float>(clip)});
    t.weights->refresh(tile, *t.ops);
  }
}

Status check_curve(const ParityReference& reference, const Training& t, ParityLog& log) {
  const int64_t steps = static_cast<int64_t>(t.losses.size());
  if (reference.has("train.loss")) {
    FS_ASSIGN(const auto truth, reference.doubles("train.loss", {steps}));
    double worst = 0;
    for (size_t i = 0; i < truth.size(); ++i)
      worst = std::max(worst, std::abs(truth[i] - t.losses[i]));
    log.compare("training loss per step, difference", worst,
                reference.tolerance(kLoss, "train_loss_max_abs"));
  }
  if (reference.has("train.grad_norm")) {
    FS_ASSIGN(const auto truth, reference.doubles("train.grad_norm", {steps}));
    double worst = 0;
    for (size_t i = 0; i < truth.size(); ++i)
      worst = std::max(worst, std::abs(truth[i] - t.norms[i]) / truth[i]);
    log.compare("gradient norm per step, relative", worst,
                reference.tolerance(kNorm, "train_grad_norm_max_rel"));
  }
  return {};
}

TensorMap saved(const ParityModel& model, Device& device, const float* flat) {
  std::vector<float> host(model.layout.elements());
  device.copy_out(host.data(), flat, host.size() * sizeof(float));
  return save_parameters(model.layout, host, DType::kF32);
}

/// Where the largest error of a final parameter is recorded without GPT-2's key bias.
const char* parameter_record(const ParityReference& reference) {
  const char* const apart = "param_final_max_abs_without_key_bias";
  const Json* recorded = reference.json().find_set("f32_vs_f64_error");
  return recorded != nullptr && recorded->find_set(apart) != nullptr ? apart
                                                                     : "param_final_max_abs";
}

Status check_parameters(const ParityModel& model, const ParityReference& reference, Device& device,
                        const Recipe& recipe, const Training& t, ParityLog& log) {
  const TensorMap before = save_parameters(model.layout, model.weights, DType::kF32);
  const TensorMap after = saved(model, device, t.weights->masters().data());
  WorstTensor updates(log, "updates, relative l2"), finals(log, "final parameters, difference");
  for (const Parameter& p : model.layout.parameters()) {
    const std::string name = "param_final." + p.name;
    if (!reference.has(name)) continue;
    FS_ASSIGN(const auto truth, reference.doubles(name, p.shape));
    FS_ASSIGN(const TensorView first, before.tensor(p.name));
    FS_ASSIGN(const TensorView last, after.tensor(p.name));
    const std::vector<float> start = first.to_floats(), ours = last.to_floats();
    const NoiseRange noise = noise_range(p);
    double difference = 0, norm = 0, worst = 0, worst_noise = 0;
    for (size_t i = 0; i < truth.size(); ++i) {
      const double error = ours[i] - truth[i];
      if (i >= noise.begin && i < noise.end) {
        if (!(std::abs(error) <= worst_noise)) worst_noise = std::abs(error);
        continue;
      }
      difference += error * error;
      norm += (truth[i] - start[i]) * (truth[i] - start[i]);
      if (!(std::abs(error) <= worst)) worst = std::abs(error);
    }
    const double usual = p.name.ends_with("k_proj.bias") ? kKeyBiasUpdate : kUpdate;
    // The record of GPT-2's attention bias is that of its key third, which is not counted here.
    const bool noisy = noise.end > noise.begin;
    updates.add(p.name, difference == 0 ? 0 : std::sqrt(difference / norm),
                noisy ? usual : reference.tolerance(usual, "update_rel_l2", p.name));
    finals.add(p.name, worst, reference.tolerance(kParameter, parameter_record(reference)));
    if (noisy) finals.add(p.name + " (key third)", worst_noise, 10 * recipe.rate);
  }
  updates.finish();
  finals.finish();
  return {};
}

Status check_moments(const ParityModel& model, const ParityReference& reference, Device& device,
                     const Training& t, ParityLog& log) {
  for (const bool second : {false, true}) {
    const std::string prefix = second ? "adam_v." : "adam_m.";
    const TensorMap ours = saved(model, device, floats(second ? t.v : t.m));
    WorstTensor worst(log, std::string(second ? "second" : "first") + " moments, relative l2");
    for (const Parameter& p : model.layout.parameters()) {
      if (!reference.has(prefix + p.name)) continue;
      FS_ASSIGN(const auto truth, reference.doubles(prefix + p.name, p.shape));
      FS_ASSIGN(const TensorView view, ours.tensor(p.name));
      // An update is made of its moments, and Adam's division only adds to their error.
      worst.add(p.name, relative_l2(truth, view.to_floats()),
                reference.tolerance(kMoment, "update_rel_l2", p.name));
    }
    worst.finish();
  }
  return {};
}

}  // namespace

Status check_training(const ParityModel& model, const ParityReference& reference, Device& device,
                      ParityLog& log) {
  if (!reference.has("train.input_ids") || !reference.has("train.labels")) {
    log.skip("training", "not in the reference");
    return {};
  }
  FS_ASSIGN(const auto ids, reference.integers("train.input_ids", {-1, -1, -1}));
  FS_ASSIGN(const auto shape, reference.shape("train.input_ids"));
  FS_ASSIGN(const auto labels, reference.integers("train.labels", shape));
  FS_ASSIGN(const Recipe recipe, read_recipe(reference));
  const size_t rows = static_cast<size_t>(shape[1] * shape[2]);
  FS_ASSIGN(Training training, prepare(model, device, static_cast<int>(rows)));
  for (int64_t step = 0; step < shape[0]; ++step) {
    const size_t from = static_cast<size_t>(step) * rows;
    FS_ASSIGN(const Microbatch batch,
              labelled_batch(model.config, std::span(ids).subspan(from, rows),
                             std::span(labels).subspan(from, rows), shape[1], shape[2]));
    train_step(model, recipe, batch, step + 1, training);
  }
  FS_TRY(device.sync());
  FS_TRY(check_curve(reference, training, log));
  FS_TRY(check_parameters(model, reference, device, recipe, training, log));
  return check_moments(model, reference, device, training, log);
}

}  // namespace fastserve
