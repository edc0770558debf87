#include "api/train_request.h"

#include "api/settings_json.h"

namespace fastserve {
namespace {

/// Every setting and its name, once: what writes and what reads go through the same list.
template <class Request, class Visit>
void visit_settings(Request& r, const Visit& visit) {
  visit("model", r.model);
  visit("data", r.data);
  visit("preset", r.preset);
  visit("from", r.from);
  visit("resume", r.resume);
  visit("vocab_size", r.vocab_size);
  visit("batch", r.batch);
  visit("block", r.block);
  visit("microbatches", r.microbatches);
  visit("accumulation", r.accumulation);
  visit("patience", r.patience);
  visit("evaluate_sequences", r.evaluate_sequences);
  visit("steps", r.steps);
  visit("evaluate_every", r.evaluate_every);
  visit("checkpoint_every", r.checkpoint_every);
  visit("warmup_steps", r.warmup_steps);
  visit("epochs", r.epochs);
  visit("learning_rate", r.learning_rate);
  visit("min_learning_rate", r.min_learning_rate);
  visit("weight_decay", r.weight_decay);
  visit("clip_norm", r.clip_norm);
  visit("validation_fraction", r.validation_fraction);
  visit("precision", r.precision);
  visit("seed", r.seed);
  visit("publish_best", r.publish_best);
  visit("gradients", r.gradients);
  visit("weights_back", r.weights_back);
  visit("consistency", r.consistency);
  visit("checkpoints", r.checkpoints);
  visit("checkpoint_copies", r.checkpoint_copies);
  visit("keep_checkpoints", r.keep_checkpoints);
  visit("outer_learning_rate", r.outer_learning_rate);
  visit("outer_momentum", r.outer_momentum);
  visit("replicas", r.replicas);
  visit("reduce", r.reduce);
  visit("trainers", r.placement.trainers);
  visit("lanes", r.placement.lanes);
  visit("shards", r.placement.shards);
}

struct Writer {
  Json& json;
  void operator()(const char* name, const std::string& value) const {
    if (!value.empty()) json.set(name, value);
  }
  void operator()(const char* name, const Path& value) const { (*this)(name, value.string()); }
  void operator()(const char* name, int value) const {
    if (value != (std::string_view(name) == "vocab_size" ? -1 : 0)) json.set(name, value);
  }
  void operator()(const char* name, const std::optional<Precision>& value) const {
    if (value) json.set(name, precision_name(*value));
  }
  template <class T>
  void operator()(const char* name, const std::optional<T>& value) const {
    if (value) json.set(name, *value);
  }
};

Status take(const char* name, const Json& json, Precision& value) {
  for (const Precision one : {Precision::kFloat32, Precision::kBFloat16, Precision::kFloat16})
    if (json.is_string() && json.as_string() == precision_name(one)) {
      value = one;
      return {};
    }
  return is_no_setting(name, "fp32, bf16 or fp16");
}

}  // namespace

Json to_json(const TrainRequest& request) {
  Json json = Json::object({});
  visit_settings(request, Writer{json});
  return json;
}

Result<TrainRequest> read_train_request(const Json& json) {
  TrainRequest request;
  FS_TRY(read_settings(
      json, "train", "a training job", [&](const auto& visit) { visit_settings(request, visit); },
      [](const char* name, const Json& given, auto& value) { return take(name, given, value); }));
  return request;
}

}  // namespace fastserve
