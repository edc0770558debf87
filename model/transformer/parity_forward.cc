// Logits, hidden states, losses and gradients of one batch.
#include <algorithm>
#include <cmath>

#include "model/transformer/parity_reference.h"

namespace fastserve {
namespace {

// Suggested with the reference: a few times what another float32 summation order gives, and far
// below what the mildest mistake does. A model whose record is rougher gets more.
constexpr double kLogits = 1e-4, kHidden = 1e-4, kTokenLoss = 1e-4, kMeanLoss = 1e-5;
constexpr double kGradient = 2e-5;

struct Evaluation {
  std::unique_ptr<TrainOps> ops;
  std::unique_ptr<TrainWeights> weights;
  std::unique_ptr<TrainPass> pass;
  std::unique_ptr<DeviceBuffer> grad;
  int64_t batch = 0, length = 0;
  Microbatch tokens;
  std::vector<double> losses;
  double mean_loss = 0;
};

Result<Evaluation> evaluate(const ParityModel& model, const ParityReference& reference,
                            Device& device, Precision precision) {
  Evaluation run;
  FS_ASSIGN(const std::vector<int64_t> shape, reference.shape("input_ids"));
  if (shape.size() != 2 || shape[1] < 2)
    return Error{ErrorCode::kCorrupt, "\"input_ids\" is not [batch, two or more tokens]",
                 reference.where(), "record the reference again"};
  run.batch = shape[0];
  run.length = shape[1];
  FS_ASSIGN(const auto ids, reference.integers("input_ids", shape));
  FS_ASSIGN(const auto labels, reference.integers("labels", shape));
  FS_ASSIGN(run.tokens, labelled_batch(model.config, ids, labels, run.batch, run.length));

  run.ops = device.make_train_ops(precision);
  FS_ASSIGN(run.weights, TrainWeights::create(device, *run.ops, model.config, model.layout));
  device.copy_in(run.weights->masters().data(), model.weights.data(),
                 model.weights.size() * sizeof(float));
  run.weights->refresh_all(*run.ops);
  const int rows = static_cast<int>(run.tokens.tokens.size());
  FS_ASSIGN(run.pass, TrainPass::create(device, *run.ops, model.config, model.layout, rows));
  FS_ASSIGN(run.grad, device.allocate(model.layout.elements() * sizeof(float)));
  run.losses.resize(run.tokens.tokens.size());
  const double counted = static_cast<double>(std::max<int64_t>(1, run.tokens.counted()));
  const double sum = run.pass->run(*run.weights, run.tokens, static_cast<float>(1.0 / counted),
                                   static_cast<float*>(run.grad->data()), run.losses);
  FS_TRY(device.sync());
  run.mean_loss = sum / counted;
  return run;
}

Status check_hidden(const ParityModel& model, const ParityReference& reference,
                    const Evaluation& run, ParityLog& log) {
  for (int i = 0; i <= model.config.layers; ++i) {
    const std::string name = "hidden." + std::to_string(i);
    if (!reference.has(name)) {
      log.skip(name, "not in the reference");
      continue;
    }
    FS_ASSIGN(const auto truth,
              reference.doubles(name, {run.batch, run.length, model.config.hidden_size}));
    log.compare(name + ", largest difference", largest_difference(truth, run.pass->hidden(i)),
                reference.tolerance(kHidden, "hidden_max_abs"));
  }
  return {};
}

Status check_losses(const ParityReference& reference, const Evaluation& run, ParityLog& log) {
  if (reference.has("token_loss")) {
    FS_ASSIGN(const auto truth, reference.doubles("token_loss", {run.batch, run.length - 1}));
    double worst = 0;
    for (int64_t b = 0; b < run.batch; ++b)
      for (int64_t t = 0; t + 1 < run.length; ++t) {
        const double ours = run.losses[static_cast<size_t>(b * run.length + t)];
        const double difference =
            std::abs(ours - truth[static_cast<size_t>(b * (run.length - 1) + t)]);
        if (!(difference <= worst)) worst = difference;
      }
    log.compare("token loss, largest difference", worst,
                reference.tolerance(kTokenLoss, "token_loss_max_abs"));
  } else {
    log.skip("token loss", "not in the reference");
  }
  if (reference.has("mean_loss")) {
    FS_ASSIGN(const auto truth, reference.doubles("mean_loss", {1}));
    log.compare("mean loss, difference", std::abs(run.mean_loss - truth[0]),
                reference.tolerance(kMeanLoss, "mean_loss_abs"));
  } else {
    log.skip("mean loss", "not in the reference");
  }
  return {};
}

Status check_gradients(const ParityModel& model, const ParityReference& reference, Device& device,
                       const Evaluation& run, ParityLog& log) {
  std::vector<float> flat(model.layout.elements());
  device.copy_out(flat.data(), run.grad->data(), flat.size() * sizeof(float));
  const TensorMap grads = save_parameters(model.layout, flat, DType::kF32);
  WorstTensor worst(log, "gradients, relative l2");
  for (const Parameter& p : model.layout.parameters()) {
    const std::string name = "grad." + p.name;
    if (!reference.has(name)) continue;
    FS_ASSIGN(auto truth, reference.doubles(name, p.shape));
    FS_ASSIGN(const TensorView view, grads.tensor(p.name));
    std::vector<float> ours = view.to_floats();
    const NoiseRange noise = noise_range(p);
    for (size_t i = noise.begin; i < noise.end; ++i) {
      truth[i] = 0;
      ours[i] = 0;
    }
    worst.add(p.name, relative_l2(truth, ours),
              reference.tolerance(kGradient, "grad_worst_tensor_rel_l2"));
  }
  worst.finish();
  return {};
}

/// bfloat16 rounds at other places than stock code does, so its error may be as large, not equal.
Status check_bf16(const ParityModel& model, const ParityReference& reference, Evaluation& run,
                  ParityLog& log) {
  const Json* recorded = reference.json().find_set("bf16_vs_f64_error");
  if (!recorded || !reference.has("logits")) {
    log.skip("bf16 logits", "not in the reference");
    return {};
  }
  FS_ASSIGN(const double tolerance, recorded->double_or("logits_rel_l2", 0));
  FS_ASSIGN(const auto truth,
            reference.doubles("logits", {run.batch, run.length, model.config.vocab_size}));
  log.compare("bf16 logits, relative l2", relative_l2(truth, run.pass->logits(*run.weights)),
              tolerance);
  return {};
}

}  // namespace

Status check_forward(const ParityModel& model, const ParityReference& reference, Device& device,
                     Precision precision, ParityLog& log) {
  if (!reference.has("input_ids") || !reference.has("labels")) {
    log.skip("forward and backward", "the reference has no input_ids and labels");
    return {};
  }
  FS_ASSIGN(Evaluation run, evaluate(model, reference, device, precision));
  if (precision == Precision::kBFloat16) return check_bf16(model, reference, run, log);
  if (reference.has("logits")) {
    FS_ASSIGN(const auto truth,
              reference.doubles("logits", {run.batch, run.length, model.config.vocab_size}));
    log.compare("logits, largest difference",
                largest_difference(truth, run.pass->logits(*run.weights)),
                reference.tolerance(kLogits, "logits_max_abs"));
  } else {
    log.skip("logits", "not in the reference");
  }
  FS_TRY(check_hidden(model, reference, run, log));
  FS_TRY(check_losses(reference, run, log));
  return check_gradients(model, reference, device, run, log);
}

}  // namespace fastserve
