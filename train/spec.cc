#include "train/spec.h"

#include <fmt/format.h>

#include <cmath>

namespace fastserve {
namespace {

Error bad(const char* field, std::string what, std::string hint = "") {
  return {ErrorCode::kInvalidArgument, std::move(what), field, std::move(hint)};
}

Status at_least(const char* field, int64_t value, int64_t least) {
  if (value >= least) return {};
  return bad(field, fmt::format("is {}; the least is {}", value, least));
}

Status within(const char* field, double value, double low, double high) {
  if (value >= low && value <= high) return {};  // NaN is outside
  return bad(field, fmt::format("is {}; it must lie between {} and {}", value, low, high));
}

Result<Precision> parse_precision(const std::string& name) {
  for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16, Precision::kFloat16})
    if (name == precision_name(precision)) return precision;
  return bad("precision", "is \"" + name + "\"", "fp32, bf16 or fp16");
}

/// Calls visit(name, field) for every setting that is a plain number.
template <class Spec, class Visit>
void each_number(Spec& spec, const Visit& visit) {
  visit("block", spec.block);
  visit("batch", spec.batch);
  visit("accumulation", spec.accumulation);
  visit("microbatches", spec.microbatches);
  visit("steps", spec.steps);
  visit("epochs", spec.epochs);
  visit("learning_rate", spec.learning_rate);
  visit("min_learning_rate", spec.min_learning_rate);
  visit("warmup_steps", spec.warmup_steps);
  visit("beta1", spec.beta1);
  visit("beta2", spec.beta2);
  visit("epsilon", spec.epsilon);
  visit("weight_decay", spec.weight_decay);
  visit("clip_norm", spec.clip_norm);
  visit("validation_fraction", spec.validation_fraction);
  visit("evaluate_every", spec.evaluate_every);
  visit("evaluate_sequences", spec.evaluate_sequences);
  visit("patience", spec.patience);
  visit("checkpoint_every", spec.checkpoint_every);
  visit("keep_checkpoints", spec.keep_checkpoints);
  visit("checkpoint_copies", spec.checkpoint_copies);
  visit("outer_learning_rate", spec.outer_learning_rate);
  visit("outer_momentum", spec.outer_momentum);
  visit("replicas", spec.replicas);
}

/// Copies of a shard stay the same bits only where all of them sum the same gradients.
Status check_replicas(const TrainSpec& spec) {
  if (spec.replicas == 0) return {};
  FS_TRY(within("replicas", spec.replicas, 0, TrainSpec::kMostReplicas));
  const auto refused = [&](const std::string& what) {
    return bad("replicas", fmt::format("is {} with {}", spec.replicas, what),
               "copies of a shard are kept in exact jobs alone: leave replicas out, or the other");
  };
  if (!spec.consistency.exact()) return refused("consistency " + spec.consistency.text());
  if (spec.gradients.kind != GradientKind::kFloat32)
    return refused("gradients " + spec.gradients.text());
  if (!spec.weights_back.exact_for(spec.precision))
    return refused("weights back as " + spec.weights_back.text());
  if (spec.node_checkpoints)
    return bad("replicas", fmt::format("is {} with checkpoints on nodes", spec.replicas),
               "keep the checkpoints with the coordinator (--checkpoints coordinator)");
  return {};
}

}  // namespace

const char* checkpoints_text(bool on_nodes) { return on_nodes ? "nodes" : "coordinator"; }

Result<bool> parse_checkpoints(const std::string& text) {
  for (const bool on_nodes : {false, true})
    if (text == checkpoints_text(on_nodes)) return on_nodes;
  return bad("checkpoints", "is \"" + text + "\"", "coordinator or nodes");
}

const char* reduce_text(GradientReduce reduce) {
  return reduce == GradientReduce::kRing ? "ring" : "tree";
}

Result<GradientReduce> parse_reduce(const std::string& text) {
  for (const GradientReduce reduce : {GradientReduce::kTree, GradientReduce::kRing})
    if (text == reduce_text(reduce)) return reduce;
  return bad("reduce", "is \"" + text + "\"", "tree or ring");
}

Status TrainSpec::validate() const {
  FS_TRY(model.validate("model"));
  FS_TRY(at_least("block", block, 1));
  FS_TRY(at_least("batch", batch, 1));
  FS_TRY(at_least("accumulation", accumulation, 1));
  FS_TRY(at_least("microbatches", microbatches, 0));
  FS_TRY(at_least("steps", steps, 0));
  FS_TRY(at_least("warmup_steps", warmup_steps, 0));
  FS_TRY(at_least("evaluate_every", evaluate_every, 0));
  FS_TRY(at_least("evaluate_sequences", evaluate_sequences, 0));
  FS_TRY(at_least("patience", patience, 0));
  FS_TRY(at_least("checkpoint_every", checkpoint_every, 0));
  FS_TRY(within("keep_checkpoints", keep_checkpoints, 1, 1000));
  FS_TRY(within("checkpoint_copies", checkpoint_copies, 1, 2));
  if (block > model.max_positions)
    return bad(
        "block",
        fmt::format("is {}, longer than the model's context of {}", block, model.max_positions),
        "choose a shorter block");
  const int64_t sequences = int64_t{batch} * accumulation;
  if (sequences > (1 << 24) || sequences * block > (int64_t{1} << 31))
    return bad("batch", fmt::format("makes a step of {} sequences of {} tokens", sequences, block),
               "choose a smaller batch");
  if (microbatches > sequences)
    return bad("microbatches",
               fmt::format("is {}, and a step has only {} sequences", microbatches, sequences),
               "a microbatch holds at least one sequence");
  if (steps == 0) FS_TRY(within("epochs", epochs, 1e-9, 1e9));
  FS_TRY(within("learning_rate", learning_rate, 0, 1e3));
  FS_TRY(within("min_learning_rate", min_learning_rate, 0, 1e3));
  FS_TRY(within("beta1", beta1, 0, 0.999999));
  FS_TRY(within("beta2", beta2, 0, 0.999999999));
  FS_TRY(within("epsilon", epsilon, 1e-30, 1));
  FS_TRY(within("weight_decay", weight_decay, 0, 1e3));
  FS_TRY(within("clip_norm", clip_norm, 0, 1e30));
  FS_TRY(within("validation_fraction", validation_fraction, 0, 0.9));
  if (consistency.loose() && weights_back.kind == WeightsBack::Kind::kDelta)
    return bad("weights_back",
               fmt::format("is {}, which is one stream to all nodes; with consistency {} each gets "
                           "weights of its own",
                           weights_back.text(), consistency.text()),
               "exact or bf16");
  if (consistency.loose() && precision == Precision::kFloat16)
    return bad("precision", fmt::format("is fp16 with consistency {}", consistency.text()),
               "bf16 or fp32");
  FS_TRY(check_replicas(*this));
  FS_TRY(within("outer_learning_rate", outer_learning_rate, 1e-6, 10));
  FS_TRY(within("outer_momentum", outer_momentum, 0, 0.9999));
  return {};
}

Json TrainSpec::to_json() const {
  Json json = Json::object({{"model", model.to_json()}, {"precision", precision_name(precision)}});
  each_number(*this, [&](const char* name, const auto& field) { json.set(name, Json(field)); });
  json.set("publish_best", publish_best);
  json.set("checkpoints", checkpoints_text(node_checkpoints));
  json.set("gradients", gradients.text());
  json.set("weights_back", weights_back.text());
  json.set("consistency", consistency.text());
  json.set("reduce", reduce_text(reduce));
  json.set("seed", Json(fmt::format("{}", seed)));  // all 64 bits, which a JSON number may lose
  return json;
}

Result<TrainSpec> TrainSpec::from_json(const Json& json, const std::string& where) {
  TrainSpec spec;
  const Json* model = json.find("model");
  if (model == nullptr) return Error{ErrorCode::kCorrupt, "has no `model`", where, ""};
  FS_ASSIGN(spec.model, ModelConfig::from_json(*model, where));
  Status status;
  each_number(spec, [&](const char* name, auto& field) {
    using Field = std::remove_reference_t<decltype(field)>;
    if constexpr (std::is_integral_v<Field>) {
      auto value = json.int_or(name, field);
      if (value.ok())
        field = static_cast<Field>(*value);
      else if (status.ok())
        status = std::move(value).error();
    } else {
      auto value = json.double_or(name, field);
      if (value.ok())
        field = *value;
      else if (status.ok())
        status = std::move(value).error();
    }
  });
  FS_TRY(std::move(status));
  FS_ASSIGN(const std::string precision, json.string_or("precision", "bf16"));
  FS_ASSIGN(spec.precision, parse_precision(precision));
  if (const Json* best = json.find_set("publish_best"); best != nullptr && best->is_bool())
    spec.publish_best = best->as_bool();
  FS_ASSIGN(const std::string checkpoints, json.string_or("checkpoints", checkpoints_text(false)));
  FS_ASSIGN(spec.node_checkpoints, parse_checkpoints(checkpoints));
  FS_ASSIGN(const std::string gradients, json.string_or("gradients", "fp32"));
  FS_ASSIGN(spec.gradients, GradientFormat::parse(gradients));
  FS_ASSIGN(const std::string back, json.string_or("weights_back", "exact"));
  FS_ASSIGN(spec.weights_back, WeightsBack::parse(back));
  FS_ASSIGN(const std::string consistency, json.string_or("consistency", "exact"));
  FS_ASSIGN(spec.consistency, Consistency::parse(consistency));
  FS_ASSIGN(const std::string reduce, json.string_or("reduce", reduce_text(spec.reduce)));
  FS_ASSIGN(spec.reduce, parse_reduce(reduce));
  FS_ASSIGN(const std::string seed, json.string_or("seed", "1337"));
  char* end = nullptr;
  spec.seed = std::strtoull(seed.c_str(), &end, 10);
  if (end == seed.c_str() || *end != 0)
    return Error{ErrorCode::kCorrupt, "has a seed that is no whole number", where, ""};
  FS_TRY(spec.validate());
  return spec;
}

}  // namespace fastserve
