// Training jobs: from a request or an interrupted job to a published version.
#include <fmt/format.h>

#include <cmath>

#include "actors/training_system.h"
#include "api/local_node.h"
#include "base/hash.h"
#include "model/parameters.h"
#include "store/names.h"
#include "train/checkpoint.h"

namespace fastserve {
namespace {

Json record_of(const TrainRequest& request, const TrainMaterial& m) {
  return Json::object({{"data", std::filesystem::absolute(request.data).string()},
                       {"data_fingerprint", fingerprint_text(m.dataset)},
                       {"preset", request.from.empty() ? Json(request.preset) : Json()},
                       {"parent", m.parent},
                       {"spec", m.spec.to_json()}});
}

/// Forwards the job's progress to the caller and, now and then, to the job's record.
class ProgressRecorder {
 public:
  ProgressRecorder(JobFolder& job, const Clock& clock,
                   const std::function<void(const TrainUpdate&)>& sink)
      : job_(job), clock_(clock), sink_(sink) {}

  void operator()(const TrainProgress& p) {
    if (p.validation_loss) validation_loss_ = *p.validation_loss;
    if (sink_)
      sink_({p.step, p.steps, p.tokens, p.loss, validation_loss_, p.learning_rate, p.grad_norm,
             p.tokens_per_second, p.eta_seconds});
    const Nanoseconds now = clock_.now();
    if (now - saved_ < std::chrono::seconds(2)) return;
    saved_ = now;
    JobInfo info = job_.info();
    info.step = p.step;
    info.steps = p.steps;
    info.loss = p.loss;
    info.validation_loss = validation_loss_;
    // The record is for people; training does not stop for it.
    [[maybe_unused]] const Status saved = job_.save(info);
  }

 private:
  JobFolder& job_;
  const Clock& clock_;
  const std::function<void(const TrainUpdate&)>& sink_;
  double validation_loss_ = 0;
  Nanoseconds saved_{0};
};

uint64_t hash_of(std::span<const float> weights) { return hash64(std::as_bytes(weights)); }

/// Resumed jobs bring no documents: those of a new model follow from its spec and tokenizer.
ModelBundle bundle_of(const TrainMaterial& m, const std::vector<float>& weights) {
  const ParameterLayout layout(m.spec.model);
  return {m.documents, std::make_shared<TensorMap>(save_parameters(layout, weights, DType::kF32))};
}

}  // namespace

Result<TrainMaterial> LocalNode::new_material(const TrainRequest& request) {
  FS_TRY(check_name(request.model));
  if (request.from.empty()) {
    FS_TRY(check_store());  // before hours of work, not after
    return prepare_training(request, nullptr, options_.log);
  }
  FS_ASSIGN(const Opened parent, open_model(request.from));
  return prepare_training(request, &parent.model, options_.log);
}

Status LocalNode::check_store() const {
  FS_TRY(make_directories(options_.root));
  FS_ASSIGN(const auto store, open_store());
  return require_free_space(options_.root, 0);
}

Result<TrainResult> LocalNode::train(const TrainRequest& request,
                                     const std::function<void(const TrainUpdate&)>& progress,
                                     const CancelFlag& cancel) {
  TrainPlacement placement = request.placement;
  if (placement.lanes == 0) placement.lanes = options_.lanes;
  if (!request.resume.empty()) {
    FS_ASSIGN(const auto job, JobFolder::open(options_.root, request.resume));
    FS_ASSIGN(TrainMaterial material, resumed_material(*job));
    return run_job(*job, std::move(material), placement, progress, cancel);
  }
  FS_ASSIGN(TrainMaterial material, new_material(request));
  JobInfo info;
  info.kind = "train";
  info.model = request.model;
  info.state = "running";
  info.details = record_of(request, material);
  FS_ASSIGN(const auto job, JobFolder::create(options_.root, clock_, info));
  FS_TRY(save_documents(*job, material));
  return run_job(*job, std::move(material), placement, progress, cancel);
}

Status LocalNode::save_documents(const JobFolder& job, const TrainMaterial& material) const {
  Json documents = Json::object({});
  for (const auto& [name, text] : material.documents) documents.set(name, text);
  return write_file_atomically(job.path() / "documents.json", documents.dump());
}

Result<TrainMaterial> LocalNode::resumed_material(const JobFolder& job) const {
  const JobInfo& info = job.info();
  if (info.state == "finished")
    return Error{ErrorCode::kAlreadyExists, "has finished: " + info.note, "job " + info.id, ""};
  const Json* spec_json = info.details.find("spec");
  if (spec_json == nullptr)
    return Error{ErrorCode::kCorrupt, "has no settings in its record", "job " + info.id,
                 "fsctl jobs rm it"};
  FS_ASSIGN(const TrainSpec spec, TrainSpec::from_json(*spec_json, "job " + info.id));
  FS_ASSIGN(const std::string data, info.details.string_or("data", ""));
  const Path file = job.path() / "documents.json";
  FS_ASSIGN(const std::string text, read_file(file));
  FS_ASSIGN(const Json documents, Json::parse(text, file.string()));
  FS_ASSIGN(const std::string tokenizer, documents.string_or("tokenizer.json", ""));
  FS_ASSIGN(TrainMaterial material, prepare_resumption(spec, tokenizer, data));
  for (const auto& [name, document] : documents.as_object())
    if (document.is_string()) material.documents[name] = document.as_string();
  FS_ASSIGN(material.parent, info.details.string_or("parent", ""));
  return material;
}

Result<TrainResult> LocalNode::run_job(JobFolder& job, TrainMaterial material,
                                       const TrainPlacement& placement,
                                       const std::function<void(const TrainUpdate&)>& progress,
                                       const CancelFlag& cancel) {
  JobInfo info = job.info();
  const auto give_up = [&](const Error& error, const char* state) -> Error {
    JobInfo last = job.info();
    last.state = state;
    last.note = error.message();
    [[maybe_unused]] const Status saved = job.save(last);
    return error;
  };
  info.state = "running";
  info.note.clear();
  FS_TRY(job.save(info));
  ProgressRecorder recorder(job, clock_, progress);
  TrainingSystem::Config config;
  config.spec = material.spec;
  config.placement = placement;
  config.dataset = std::make_shared<const Dataset>(std::move(material.dataset));
  config.tokenizer_json = material.tokenizer_json;
  config.checkpoint_directory = job.checkpoints();
  config.initial_weights = std::move(material.weights);
  config.isa = isa_;
  config.clock = &clock_;
  config.log = options_.log;
  config.progress = [&](const TrainProgress& p) { recorder(p); };
  config.cancel = &cancel;
  auto system = TrainingSystem::start(std::move(config));
  if (!system.ok()) {
    // Nothing was computed: a job that never began is not worth remembering.
    if (job.info().step == 0) return discard_job(job, system.error());
    return give_up(system.error(), "interrupted");
  }
  auto outcome = (*system)->wait();
  if (!outcome.ok()) return give_up(outcome.error(), "failed");
  if (outcome->end == TrainEnd::kCancelled)
    return give_up({ErrorCode::kCancelled, fmt::format("stopped after step {}", outcome->steps),
                    "job " + info.id, "fsctl jobs resume " + info.id + " goes on"},
                   "interrupted");
  return finish_job(job, material, *outcome);
}

Error LocalNode::discard_job(JobFolder& job, const Error& error) const {
  std::error_code ignored;
  std::filesystem::remove_all(job.path(), ignored);
  return error;
}

Result<TrainResult> LocalNode::finish_job(JobFolder& job, const TrainMaterial& material,
                                          const TrainOutcome& outcome) {
  // What is published is the best by validation when early stopping was asked for, else the last.
  const bool best = material.spec.patience > 0 && !outcome.best_weights.empty();
  const std::vector<float>& weights = best ? outcome.best_weights : outcome.weights;
  TrainResult result;
  result.job = job.info().id;
  result.steps = outcome.steps;
  result.tokens = outcome.tokens;
  result.train_loss = outcome.losses.empty() ? 0 : outcome.losses.back();
  result.validation_loss =
      (best ? outcome.best_validation_loss : outcome.validation_loss).value_or(0);
  result.seconds = outcome.seconds;
  result.tokens_per_second = outcome.tokens_per_second;
  result.stopped_early = outcome.end == TrainEnd::kEarlyStop;
  result.peak_bytes = outcome.peak_memory_bytes;
  result.expected_bytes = outcome.planned_memory_bytes;
  result.weights_hash = hash_of(weights);
  Json details = job.info().details;
  details.set("steps", result.steps);
  details.set("tokens", result.tokens);
  details.set("train_loss", result.train_loss);
  details.set("validation_loss", result.validation_loss);
  details.set("tokens_per_second", result.tokens_per_second);
  details.set("weights_hash", fmt::format("{:016x}", result.weights_hash));
  FS_ASSIGN(result.model, publish_trained(job, material, weights, details));
  JobInfo info = job.info();
  info.state = "finished";
  info.step = result.steps;
  info.loss = result.train_loss;
  info.validation_loss = result.validation_loss;
  info.note = result.model.text();
  info.details = details;
  FS_TRY(job.save(info));
  std::error_code ignored;  // the model is published; its checkpoints only take space
  std::filesystem::remove_all(job.checkpoints(), ignored);
  return result;
}

Result<ModelRef> LocalNode::publish_trained(const JobFolder& job, const TrainMaterial& material,
                                            const std::vector<float>& weights,
                                            const Json& details) {
  constexpr auto kPatience =
      std::chrono::minutes(2);  // hours of work wait for minutes of another's
  auto store = open_store_within(kPatience);
  if (!store.ok()) {
    Error error = store.error();
    error.hint = fmt::format("the finished weights are kept: fsctl jobs resume {} publishes them",
                             job.info().id);
    return error;
  }
  return (*store)->publish(job.info().model, bundle_of(material, weights),
                           {"train", material.parent, details});
}

}  // namespace fastserve
