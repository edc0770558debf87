// Training jobs: from a request or an interrupted job to a published version.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "actors/training_system.h"
#include "api/local_node.h"
#include "base/hash.h"
#include "model/parameters.h"
#include "store/names.h"
#include "train/checkpoint.h"
#include "train/plan.h"

namespace fastserve {
namespace {

/// A job that goes on without a word about devices goes on on this one.
void record_device(Json& details, const ChosenDevice& device) {
  if (device.name.empty()) return;
  details.set("device", device.name);
  details.set("device_description", device.description);
}

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

/// What a cancelled job says, and where it goes on.
Error stopped(const std::string& id, const TrainOutcome& outcome) {
  std::string what = fmt::format("stopped after step {}", outcome.steps);
  if (!outcome.checkpoint.ok())
    what += ", and that step was not saved: " + outcome.checkpoint.error().message();
  return {ErrorCode::kCancelled, what, "job " + id,
          fmt::format("fsctl jobs resume {} goes on from {}", id,
                      outcome.checkpoint.ok() ? "there" : "the last checkpoint")};
}

/// The error of a job that failed, with how to go on from what it has saved.
Error with_way_on(Error error, const JobFolder& job) {
  if (!CheckpointDirectory::holds_any(job.checkpoints())) return error;
  error.hint += fmt::format(
      "{}fsctl train --resume {} goes on from the last checkpoint, with another --learning-rate if "
      "you like",
      error.hint.empty() ? "" : "; ", job.info().id);
  return error;
}

bool made_by_job(const Lineage& lineage, const Json& details) {
  const auto same = [&](const char* key) {
    const Json* theirs = lineage.details.find_set(key);
    const Json* ours = details.find_set(key);
    return theirs != nullptr && ours != nullptr && *theirs == *ours;
  };
  return same("job") && same("weights_hash");
}

bool all_finite(const std::vector<float>& weights) {
  return std::all_of(weights.begin(), weights.end(), [](float w) { return std::isfinite(w); });
}

}  // namespace

Result<TrainMaterial> LocalNode::new_material(const TrainRequest& request, bool device_memory) {
  FS_TRY(check_name(request.model));
  if (request.from.empty()) {
    FS_TRY(check_store());  // before hours of work, not after
    return prepare_training(request, nullptr, device_memory, options_.log);
  }
  FS_ASSIGN(const Opened parent, open_model(request.from));
  return prepare_training(request, &parent.model, device_memory, options_.log);
}

Status LocalNode::check_store() const {
  FS_TRY(make_directories(options_.root));
  FS_ASSIGN(const auto store, open_store());
  return require_free_space(options_.root, 0);
}

Result<TrainResult> LocalNode::train(const TrainRequest& request,
                                     const std::function<void(const TrainUpdate&)>& progress,
                                     const CancelFlag& cancel) {
  TrainRequest here = request;
  if (here.placement.lanes == 0) here.placement.lanes = options_.lanes;
  if (!request.resume.empty()) {
    FS_ASSIGN(const auto job, JobFolder::open(options_.root, request.resume));
    FS_ASSIGN(const std::string before, job->info().details.string_or("device", ""));
    FS_ASSIGN(const ChosenDevice device, training_device(before));
    FS_ASSIGN(TrainMaterial material, resumed_material(*job, here));
    return run_job(*job, std::move(material), here.placement, device, progress, cancel);
  }
  FS_ASSIGN(const ChosenDevice device, training_device(""));
  FS_ASSIGN(TrainMaterial material, new_material(here, device.own_memory()));
  if (cancel.raised()) return Error{ErrorCode::kCancelled, "stopped before the first step", "", ""};
  JobInfo info;
  info.kind = "train";
  info.model = request.model;
  info.state = "running";
  info.details = record_of(request, material);
  FS_ASSIGN(const auto job, JobFolder::create(options_.root, clock_, info));
  const auto begin = [&]() -> Result<TrainResult> {
    FS_TRY(save_documents(*job, material));
    return run_job(*job, std::move(material), here.placement, device, progress, cancel);
  };
  auto result = begin();
  // A job that never took a step is not worth remembering.
  if (!result.ok() && result.error().code != ErrorCode::kCancelled && job->info().step == 0)
    discard_job(*job);
  return result;
}

Result<ChosenDevice> LocalNode::training_device(const std::string& before) const {
  if (engine_) return ChosenDevice();
  return device(before);
}

Status LocalNode::save_documents(const JobFolder& job, const TrainMaterial& material) const {
  Json documents = Json::object({});
  for (const auto& [name, text] : material.documents) documents.set(name, text);
  return write_file_atomically(job.path() / "documents.json", documents.dump());
}

Result<TrainMaterial> LocalNode::resumed_material(JobFolder& job,
                                                  const TrainRequest& request) const {
  JobInfo info = job.info();
  if (info.state == "finished")
    return Error{ErrorCode::kAlreadyExists, "has finished: " + info.note, "job " + info.id, ""};
  const Json* spec_json = info.details.find("spec");
  if (spec_json == nullptr)
    return Error{ErrorCode::kCorrupt, "has no settings in its record", "job " + info.id,
                 "fsctl jobs rm it"};
  FS_ASSIGN(const TrainSpec spec, TrainSpec::from_json(*spec_json, "job " + info.id));
  FS_ASSIGN(const std::string recorded, info.details.string_or("data", ""));
  const Path data = request.data.empty() ? Path(recorded) : std::filesystem::absolute(request.data);
  const Path file = job.path() / "documents.json";
  FS_ASSIGN(const std::string text, read_file(file));
  FS_ASSIGN(const Json documents, Json::parse(text, file.string()));
  FS_ASSIGN(const std::string tokenizer, documents.string_or("tokenizer.json", ""));
  FS_ASSIGN(TrainMaterial material, prepare_resumption(request, spec, tokenizer, data));
  FS_ASSIGN(const std::string fingerprint, info.details.string_or("data_fingerprint", ""));
  if (!fingerprint.empty() && fingerprint != fingerprint_text(material.dataset))
    return data_changed(data.string());
  for (const auto& [name, document] : documents.as_object())
    if (document.is_string()) material.documents[name] = document.as_string();
  FS_ASSIGN(material.parent, info.details.string_or("parent", ""));
  FS_TRY(load_parent_weights(job, material));
  info.details.set("data", data.string());
  info.details.set("spec", material.spec.to_json());
  FS_TRY(job.save(info));
  return material;
}

/// A job that was stopped before its first checkpoint begins again, from where it had begun.
Status LocalNode::load_parent_weights(const JobFolder& job, TrainMaterial& material) const {
  if (material.parent.empty() || CheckpointDirectory::holds_any(job.checkpoints())) return {};
  FS_ASSIGN(const Opened parent, open_model(material.parent));
  const ParameterLayout layout(material.spec.model);
  material.weights.resize(layout.elements());
  return load_parameters(layout, *parent.model.bundle.tensors, material.weights);
}

/// What a job will write: a checkpoint beside the last one, and the model.
Status LocalNode::check_space(const JobFolder& job, const TrainSpec& spec) const {
  constexpr uint64_t kCheckpointBytes = 16, kModelBytes = 4;  // per parameter
  const uint64_t each = kModelBytes + (spec.node_checkpoints ? 0 : kCheckpointBytes);
  return require_free_space(job.path(), static_cast<uint64_t>(count_parameters(spec.model)) * each);
}

Result<TrainResult> LocalNode::run_job(JobFolder& job, TrainMaterial material,
                                       const TrainPlacement& placement, const ChosenDevice& device,
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
  FS_TRY(check_space(job, material.spec));
  info.state = "running";
  info.note.clear();
  record_device(info.details, device);
  FS_TRY(job.save(info));
  ProgressRecorder recorder(job, clock_, progress);
  TrainingSystem::Config config;
  config.spec = material.spec;
  config.placement = placement;
  config.dataset = std::make_shared<const Dataset>(std::move(material.dataset));
  config.tokenizer_json = material.tokenizer_json;
  config.checkpoint_directory = job.checkpoints();
  config.ledger = job.ledger();
  config.initial_weights = std::move(material.weights);
  config.make_device = device.make;
  config.make_host = device.make_host;
  config.more_devices = device.more;
  config.link = device.link;
  config.clock = &clock_;
  config.log = options_.log;
  config.progress = [&](const TrainProgress& p) { recorder(p); };
  config.cancel = &cancel;
  auto outcome = run_engine(std::move(config), info.id);
  if (!outcome.ok()) {
    // A cluster's job whose nodes and their checkpoints are not there can go on when they are.
    const ErrorCode code = outcome.error().code;
    const bool stopped = code == ErrorCode::kCancelled || code == ErrorCode::kNotFound;
    return give_up(with_way_on(outcome.error(), job), stopped ? "interrupted" : "failed");
  }
  if (outcome->end == TrainEnd::kCancelled)
    return give_up(stopped(info.id, *outcome), "interrupted");
  auto result = finish_job(job, material, *outcome);
  if (!result.ok()) return give_up(result.error(), "interrupted");
  return result;
}

Result<TrainOutcome> LocalNode::run_engine(TrainingSystem::Config config,
                                           const std::string& id) const {
  if (engine_) return engine_(std::move(config), id);
  FS_ASSIGN(const auto system, TrainingSystem::start(std::move(config)));
  options_.log.info(fmt::format("job {}: {}", id, system->description()));
  return system->wait();
}

void LocalNode::discard_job(const JobFolder& job) const {
  std::error_code ignored;
  std::filesystem::remove_all(job.path(), ignored);
}

Result<TrainResult> LocalNode::finish_job(JobFolder& job, const TrainMaterial& material,
                                          const TrainOutcome& outcome) {
  const bool best = material.spec.publish_best && !outcome.best_weights.empty();
  const std::vector<float>& weights = best ? outcome.best_weights : outcome.weights;
  if (!all_finite(weights))
    return Error{ErrorCode::kInvalidArgument, "some of the trained weights are not finite",
                 "job " + job.info().id, "start a new job with a lower learning rate"};
  TrainResult result;
  result.job = job.info().id;
  result.steps = outcome.steps;
  result.tokens = outcome.tokens;
  result.train_loss = outcome.losses.empty() ? 0 : outcome.losses.back();
  result.validation_loss = (best ? outcome.best_validation_loss : outcome.validation_loss)
                               .value_or(std::numeric_limits<double>::quiet_NaN());
  result.published_step = best ? outcome.best_step : outcome.steps;
  result.seconds = outcome.seconds;
  result.tokens_per_second = outcome.tokens_per_second;
  result.stopped_early = outcome.end == TrainEnd::kEarlyStop;
  result.peak_bytes = outcome.peak_memory_bytes;
  result.expected_bytes = outcome.planned_memory_bytes;
  result.weights_hash = hash_of(weights);
  Json details = job.info().details;
  details.set("job", result.job);
  details.set("published_step", result.published_step);
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
  info.validation_loss = std::isfinite(result.validation_loss) ? result.validation_loss : 0;
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
  const auto publish = [&]() -> Result<ModelRef> {
    // RocksDB does not survive a disk that is full when it opens.
    FS_TRY(require_free_space(options_.root, 0));
    FS_ASSIGN(const auto store, store_->open(kPatience));
    FS_ASSIGN(const auto versions, store->list());
    // A job that was killed between publishing and saying so has its version already.
    for (const ModelInfo& version : versions)
      if (version.ref.name == job.info().model && made_by_job(version.lineage, details))
        return version.ref;
    return store->publish(job.info().model, bundle_of(material, weights),
                          {"train", material.parent, details});
  };
  auto ref = publish();
  if (ref.ok()) return ref;
  Error error = ref.error();
  error.hint += fmt::format("{}fsctl jobs resume {} goes on from the last checkpoint and publishes",
                            error.hint.empty() ? "" : "; ", job.info().id);
  return error;
}

}  // namespace fastserve
