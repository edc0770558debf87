#include "api/train_material.h"

#include <fmt/format.h>

#include "actors/memory.h"
#include "cpu/cpu_device.h"
#include "model/huggingface.h"
#include "model/parameters.h"

namespace fastserve {
namespace {

template <class T, class U>
void override_with(T& field, const std::optional<U>& value) {
  if (value) field = static_cast<T>(*value);
}

/// What may change when a job goes on.
void apply_course(TrainSpec& spec, const TrainRequest& r) {
  override_with(spec.patience, r.patience);
  override_with(spec.evaluate_sequences, r.evaluate_sequences);
  override_with(spec.evaluate_every, r.evaluate_every);
  override_with(spec.checkpoint_every, r.checkpoint_every);
  override_with(spec.publish_best, r.publish_best);
  override_with(spec.warmup_steps, r.warmup_steps);
  override_with(spec.learning_rate, r.learning_rate);
  override_with(spec.min_learning_rate, r.min_learning_rate);
  override_with(spec.weight_decay, r.weight_decay);
  override_with(spec.clip_norm, r.clip_norm);
  if (r.epochs) spec.epochs = *r.epochs, spec.steps = 0;
  if (r.steps) spec.steps = *r.steps;
  if (r.learning_rate && !r.min_learning_rate) spec.min_learning_rate = *r.learning_rate / 10;
}

/// In which form tensors travel, when, and where checkpoints lie: also when a job goes on.
Status apply_forms(TrainSpec& spec, const TrainRequest& r) {
  if (r.gradients) {
    FS_ASSIGN(spec.gradients, GradientFormat::parse(*r.gradients));
  }
  if (r.weights_back) {
    FS_ASSIGN(spec.weights_back, WeightsBack::parse(*r.weights_back));
  }
  if (r.consistency) {
    FS_ASSIGN(spec.consistency, Consistency::parse(*r.consistency));
  }
  if (r.checkpoints) {
    FS_ASSIGN(spec.node_checkpoints, parse_checkpoints(*r.checkpoints));
  }
  override_with(spec.checkpoint_copies, r.checkpoint_copies);
  override_with(spec.keep_checkpoints, r.keep_checkpoints);
  override_with(spec.outer_learning_rate, r.outer_learning_rate);
  override_with(spec.outer_momentum, r.outer_momentum);
  override_with(spec.replicas, r.replicas);
  if (r.reduce) {
    FS_ASSIGN(spec.reduce, parse_reduce(*r.reduce));
  }
  return {};
}

void apply_overrides(TrainSpec& spec, const TrainRequest& r) {
  override_with(spec.batch, r.batch);
  override_with(spec.block, r.block);
  override_with(spec.microbatches, r.microbatches);
  override_with(spec.accumulation, r.accumulation);
  override_with(spec.validation_fraction, r.validation_fraction);
  override_with(spec.precision, r.precision);
  override_with(spec.seed, r.seed);
  apply_course(spec, r);
}

/// kInvalidArgument for a setting that a job keeps for life.
Status check_kept(const TrainRequest& r) {
  const std::pair<const char*, bool> kept[] = {
      {"model", !r.model.empty()},
      {"from", !r.from.empty()},
      {"vocab_size", r.vocab_size >= 0},
      {"batch", r.batch.has_value()},
      {"block", r.block.has_value()},
      {"microbatches", r.microbatches.has_value()},
      {"accumulation", r.accumulation.has_value()},
      {"validation_fraction", r.validation_fraction.has_value()},
      {"precision", r.precision.has_value()},
      {"seed", r.seed.has_value()}};
  for (const auto& [name, given] : kept)
    if (given)
      return Error{ErrorCode::kInvalidArgument, "cannot change when a job goes on", name,
                   "leave it out, or start a new job"};
  return {};
}

/// A longer block than the preset's needs more positions; a context can only grow for a fresh
/// model.
void fit_positions(TrainSpec& spec) {
  spec.model.max_positions = std::max(spec.model.max_positions, spec.block);
}

Result<std::string> tokenizer_for(const TrainRequest& request, const Corpus& corpus, int vocab_size,
                                  double validation_fraction, const Log& log) {
  if (!corpus.shards().empty()) {
    std::error_code error;
    const bool folder = std::filesystem::is_directory(request.data, error);
    const Path beside = (folder ? request.data : request.data.parent_path()) / "tokenizer.json";
    if (std::filesystem::exists(beside, error)) return read_file(beside);
    return Error{ErrorCode::kInvalidArgument, "holds token shards but no tokenizer.json",
                 request.data.string(),
                 "put the tokenizer that made them beside them, or fine-tune with --from MODEL"};
  }
  BpeTrainerOptions options;
  std::vector<std::string_view> texts;
  if (vocab_size == 0) {  // characters: every one that occurs, the held-out text's too
    options.vocab_size = 0;
    options.alphabet = BpeTrainerOptions::Alphabet::kSeenBytes;
    options.special_tokens.clear();
    for (const Corpus::Document& document : corpus.documents()) texts.push_back(document.text);
  } else {
    options.vocab_size = vocab_size;
    texts = training_texts(corpus, validation_fraction);
    log.info(fmt::format("training a tokenizer of {} tokens", vocab_size));
  }
  return train_bpe(texts, options);
}

/// Files that make the published model load elsewhere.
std::map<std::string, std::string> documents_of(const TrainMaterial& m) {
  Json tokenizer_config = Json::object({{"tokenizer_class", "PreTrainedTokenizerFast"},
                                        {"model_max_length", m.spec.model.max_positions}});
  if (const auto end = end_of_text_token(*m.tokenizer))
    tokenizer_config.set("eos_token", m.tokenizer->token_text(*end));
  return {{"config.json", m.spec.model.to_json().dump(2)},
          {"tokenizer.json", m.tokenizer_json},
          {"tokenizer_config.json", tokenizer_config.dump(2)}};
}

Status start_from_parent(TrainMaterial& m, const TrainRequest& request, const StoredModel& parent) {
  FS_ASSIGN(m.spec.model, bundle_config(parent.bundle));
  FS_ASSIGN(const auto formats, bundle_weight_formats(parent.bundle));
  if (!formats.empty())
    return Error{ErrorCode::kInvalidArgument, "is quantised and cannot be trained further",
                 parent.ref.text(),
                 "fine-tune the model it was compressed from: " + parent.lineage.parent};
  m.parent = parent.ref.text();
  m.documents = parent.bundle.documents;
  const auto tokenizer = m.documents.find("tokenizer.json");
  if (tokenizer == m.documents.end())
    return Error{ErrorCode::kInvalidArgument, "has no tokenizer.json", m.parent,
                 "import it with its tokenizer"};
  m.tokenizer_json = tokenizer->second;
  m.spec.block = std::min(1024, m.spec.model.max_positions);
  m.spec.batch = 4;
  m.spec.learning_rate = 2e-5;
  m.spec.min_learning_rate = 2e-6;
  apply_overrides(m.spec, request);
  FS_TRY(apply_forms(m.spec, request));
  if (m.spec.block > m.spec.model.max_positions)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("a block of {} is longer than the model's context of {}", m.spec.block,
                             m.spec.model.max_positions),
                 m.parent, "use a smaller --block"};
  const ParameterLayout layout(m.spec.model);
  m.weights.resize(layout.elements());
  return load_parameters(layout, *parent.bundle.tensors, m.weights);
}

Status start_fresh(TrainMaterial& m, const TrainRequest& request, const Corpus& corpus,
                   bool device_memory, const Log& log) {
  FS_ASSIGN(Preset preset, find_preset(request.preset));
  m.spec = preset.spec;
  apply_overrides(m.spec, request);
  FS_TRY(apply_forms(m.spec, request));
  fit_positions(m.spec);
  // Before minutes of work: with the smallest vocabulary there is.
  TrainSpec least = m.spec;
  least.model.vocab_size = 1;
  FS_TRY(least.validate());
  const MemoryEstimate need =
      estimate_memory(least, plan_training(least, request.placement, usable_cores()), true,
                      request.placement.recompute.value_or(Recompute::kLayer));
  FS_TRY(check_memory(device_memory ? need.beside_a_device(least, /*resident=*/true) : need, 0));
  const int vocab_size = request.vocab_size >= 0 ? request.vocab_size : preset.vocab_size;
  FS_ASSIGN(m.tokenizer_json,
            tokenizer_for(request, corpus, vocab_size, m.spec.validation_fraction, log));
  return {};
}

}  // namespace

Result<Dataset> tokenise_corpus(const Path& data, const Tokenizer& tokenizer,
                                double validation_fraction, int block) {
  FS_ASSIGN(const Corpus corpus, Corpus::load(data));
  return Dataset::build(corpus, &tokenizer, validation_fraction, block);
}

std::string fingerprint_text(const Dataset& dataset) {
  return fmt::format("{:016x}", dataset.fingerprint);
}

Result<TrainMaterial> prepare_training(const TrainRequest& request, const StoredModel* parent,
                                       bool device_memory, const Log& log) {
  TrainMaterial m;
  if (parent == nullptr) FS_TRY(find_preset(request.preset));
  FS_ASSIGN(const Corpus corpus, Corpus::load(request.data));
  FS_TRY(parent != nullptr ? start_from_parent(m, request, *parent)
                           : start_fresh(m, request, corpus, device_memory, log));
  FS_ASSIGN(m.tokenizer, Tokenizer::from_json(m.tokenizer_json, "tokenizer.json"));
  if (parent == nullptr) {
    m.spec.model.vocab_size = m.tokenizer->vocab_size();
    if (const auto end = end_of_text_token(*m.tokenizer)) m.spec.model.eos_tokens = {*end};
  }
  FS_TRY(m.spec.validate());
  FS_ASSIGN(m.dataset,
            Dataset::build(corpus, m.tokenizer.get(), m.spec.validation_fraction, m.spec.block));
  log.info(
      fmt::format("{}: {} files, {} documents, {} training and {} validation tokens, vocabulary {}",
                  request.data.string(), m.dataset.files, m.dataset.documents,
                  m.dataset.train.size(), m.dataset.validation.size(), m.spec.model.vocab_size));
  if (parent == nullptr) m.documents = documents_of(m);
  return m;
}

Result<TrainMaterial> prepare_resumption(const TrainRequest& request, const TrainSpec& spec,
                                         const std::string& tokenizer_json, const Path& data) {
  FS_TRY(check_kept(request));
  TrainMaterial m;
  m.spec = spec;
  apply_course(m.spec, request);
  FS_TRY(apply_forms(m.spec, request));
  FS_TRY(m.spec.validate());
  m.tokenizer_json = tokenizer_json;
  FS_ASSIGN(m.tokenizer, Tokenizer::from_json(tokenizer_json, "tokenizer.json"));
  FS_ASSIGN(m.dataset, tokenise_corpus(data, *m.tokenizer, spec.validation_fraction, spec.block));
  return m;
}

}  // namespace fastserve
