#include "compress/compressor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "compress/pruning.h"
#include "model/huggingface.h"

namespace fastserve {
namespace {

constexpr const char* kHead = "lm_head.weight";

/// Attention and MLP projections: every matrix but the embeddings and the head.
bool is_projection(const ParameterLayout& layout, const Parameter& parameter) {
  if (!parameter.decay || parameter.name == kHead) return false;
  return parameter.offset != layout.token_embedding().offset &&
         (layout.position_embedding().empty() ||
          parameter.offset != layout.position_embedding().offset);
}

/// Tables stay floats: as they were in 16 bits, and f16 otherwise (finer than bf16) unless a weight
/// does not fit it.
DType table_type(const CompressSpec& spec, const TensorSource& source, const Parameter& table,
                 std::span<const float> values) {
  if (spec.weights == WeightFormat::kFloat32) return DType::kF32;
  if (spec.weights == WeightFormat::kBFloat16) return DType::kBF16;
  if (!is_quantised(spec.weights)) return DType::kF16;
  const Result<TensorView> stored = find_parameter(table, source);
  if (stored.ok() && stored->dtype != DType::kF32) return stored->dtype;
  const bool fits =
      std::all_of(values.begin(), values.end(), [](float v) { return std::fabs(v) < 65504.0f; });
  return fits ? DType::kF16 : DType::kBF16;
}

DType float_type(WeightFormat format) {
  if (format == WeightFormat::kFloat32) return DType::kF32;
  return format == WeightFormat::kFloat16 ? DType::kF16 : DType::kBF16;
}

/// One parameter as floats, in the checkpoint's shape and orientation.
Tensor float_tensor(const Parameter& parameter, std::span<const float> values, DType dtype) {
  if (!parameter.transposed) return Tensor::from_floats(parameter.shape, values, dtype);
  const size_t rows = static_cast<size_t>(parameter.rows),
               cols = static_cast<size_t>(parameter.cols);
  std::vector<float> turned(values.size());
  for (size_t r = 0; r < rows; r++)
    for (size_t c = 0; c < cols; c++) turned[c * rows + r] = values[r * cols + c];
  return Tensor::from_floats(parameter.shape, turned, dtype);
}

Result<std::string> config_text(const ModelBundle& source, const ModelConfig& config,
                                const Json& weights) {
  FS_ASSIGN(Json json, Json::parse(source.documents.at("config.json"), "config.json"));
  json.set(config.architecture == Architecture::kGpt2 ? "n_inner" : "intermediate_size",
           config.intermediate_size);
  Json own{Json::Object{}};
  if (const Json* old = json.find_set("fastserve"))
    for (const auto& [key, value] : old->as_object())
      if (key != "weights" && key != "intermediate_sizes") own.set(key, value);
  if (!config.intermediate_sizes.empty())
    own.set("intermediate_sizes", Json::array_of(config.intermediate_sizes));
  if (!weights.as_object().empty()) own.set("weights", weights);
  json.set("fastserve", std::move(own));
  return json.dump(2) + "\n";
}

Json to_json(const Measurement& m) {
  return Json::object({{"bytes", m.bytes},
                       {"perplexity", m.perplexity},
                       {"tokens_per_second", m.tokens_per_second}});
}

Json make_card(const CompressSpec& spec, const Measurement& before, const Measurement& after) {
  Json card = Json::object({{"weights", weight_format_name(spec.weights)},
                            {"head", weight_format_name(spec.head_format())},
                            {"pruning", pruning_kind_name(spec.pruning)}});
  if (spec.has_sparsity()) card.set("sparsity", spec.sparsity);
  Json bounds{Json::Object{}};
  if (spec.max_perplexity_increase > 0)
    bounds.set("max_perplexity_increase", spec.max_perplexity_increase);
  if (spec.max_perplexity > 0) bounds.set("max_perplexity", spec.max_perplexity);
  if (spec.max_bytes > 0) bounds.set("max_bytes", spec.max_bytes);
  if (spec.min_tokens_per_second > 0)
    bounds.set("min_tokens_per_second", spec.min_tokens_per_second);
  card.set("bounds", std::move(bounds));
  card.set("before", to_json(before));
  card.set("after", to_json(after));
  return card;
}

}  // namespace

Compressor::Compressor(ModelBundle source, CompressorHooks hooks)
    : source_(std::move(source)), hooks_(std::move(hooks)) {
  FS_CHECK(source_.tensors != nullptr && hooks_.measure);
}

void Compressor::report(std::string_view stage, double fraction) const {
  if (hooks_.progress) hooks_.progress(stage, fraction);
}

Status Compressor::check_cancelled() const {
  if (hooks_.cancel == nullptr || !hooks_.cancel->raised()) return {};
  return Error{ErrorCode::kCancelled, "the compression was stopped", source_.tensors->where(), ""};
}

Status Compressor::load() {
  if (model_) return {};
  FS_ASSIGN(const auto formats, bundle_weight_formats(source_));
  if (!formats.empty())
    return Error{ErrorCode::kUnsupported,
                 fmt::format("its weights are quantised already ({})",
                             weight_format_name(formats.begin()->second)),
                 source_.tensors->where(), "compress the model it was made from"};
  FS_ASSIGN(const ModelConfig config, bundle_config(source_));
  const ParameterLayout layout(config);
  FlatModel model{config, std::vector<float>(layout.elements())};
  FS_TRY(load_parameters(layout, *source_.tensors, model.flat));
  model_ = std::move(model);
  return {};
}

Status Compressor::mask_matrices(const CompressSpec& spec, const ParameterLayout& layout,
                                 std::vector<float>& flat) {
  const bool wanda = spec.pruning == PruningKind::kWanda || spec.pruning == PruningKind::kWanda2of4;
  PruningScope scope = PruningScope::k2of4;
  if (spec.pruning == PruningKind::kMagnitude) scope = PruningScope::kTensor;
  if (spec.pruning == PruningKind::kWanda) scope = PruningScope::kRow;
  for (const Parameter& parameter : layout.parameters()) {
    if (!is_projection(layout, parameter)) continue;
    FS_TRY(check_cancelled());
    std::vector<double> norms;
    if (wanda) {
      norms = norms_->norms(parameter.name);
      if (norms.size() != static_cast<size_t>(parameter.cols))
        return Error{ErrorCode::kInternal, "the calibration has not seen this matrix",
                     parameter.name, ""};
    }
    const std::span<float> values = std::span(flat).subspan(parameter.offset, parameter.size());
    apply_mask(pruning_mask(values, parameter.rows, parameter.cols, norms, scope, spec.sparsity),
               values);
    report("prune", static_cast<double>(parameter.offset) / static_cast<double>(layout.elements()));
  }
  return {};
}

Result<FlatModel> Compressor::prune(const CompressSpec& spec) {
  if (spec.needs_calibration() && !norms_) {
    if (!hooks_.calibrate)
      return Error{
          ErrorCode::kInvalidArgument,
          fmt::format("{} pruning needs text to calibrate on", pruning_kind_name(spec.pruning)),
          "calibration", "give some with --data"};
    report("calibrate", 0);
    FS_ASSIGN(norms_, hooks_.calibrate(source_));
    FS_TRY(check_cancelled());
  }
  report("prune", 0);
  if (spec.pruning == PruningKind::kNeurons) return remove_neurons(*model_, *norms_, spec.sparsity);
  FlatModel pruned = *model_;
  if (spec.pruning != PruningKind::kNone)
    FS_TRY(mask_matrices(spec, ParameterLayout(pruned.config), pruned.flat));
  return pruned;
}

Result<ModelBundle> Compressor::pack(const CompressSpec& spec, const FlatModel& model) {
  const ParameterLayout layout(model.config);
  auto tensors = std::make_shared<TensorMap>(source_.tensors->where() + " (compressed)");
  Json weights{Json::Object{}};
  const auto add_matrix = [&](const std::string& name, std::span<const float> values, int rows,
                              int cols, WeightFormat format) -> Status {
    FS_ASSIGN(const QuantisedMatrix matrix,
              quantise(values, rows, cols, format, name, hooks_.parallel));
    add_quantised(*tensors, name, matrix);
    weights.set(name, weight_format_name(format));
    return {};
  };
  for (const Parameter& parameter : layout.parameters()) {
    FS_TRY(check_cancelled());
    report("quantise",
           static_cast<double>(parameter.offset) / static_cast<double>(layout.elements()));
    const std::span<const float> values =
        std::span(model.flat).subspan(parameter.offset, parameter.size());
    const bool head = parameter.name == kHead;
    if (head || is_projection(layout, parameter)) {
      const WeightFormat format = head ? spec.head_format() : spec.weights;
      if (is_quantised(format))
        FS_TRY(add_matrix(parameter.name, values, parameter.rows, parameter.cols, format));
      else
        tensors->add(parameter.name, float_tensor(parameter, values, float_type(format)));
    } else {
      const DType dtype =
          parameter.decay ? table_type(spec, *source_.tensors, parameter, values) : DType::kF32;
      tensors->add(parameter.name, float_tensor(parameter, values, dtype));
    }
  }
  const Block& table = layout.token_embedding();
  if (model.config.tied_embeddings && is_quantised(spec.head_format()))
    FS_TRY(add_matrix(kHead, std::span(model.flat).subspan(table.offset, table.size()), table.rows,
                      table.cols, spec.head_format()));
  ModelBundle bundle{source_.documents, tensors};
  FS_ASSIGN(bundle.documents["config.json"], config_text(source_, model.config, weights));
  return bundle;
}

Result<ModelBundle> Compressor::compress(const CompressSpec& spec) {
  FS_TRY(spec.validate());
  FS_TRY(load());
  FS_ASSIGN(const FlatModel model, prune(spec));
  FS_ASSIGN(ModelBundle bundle, pack(spec, model));
  FS_TRY(check_bundle(bundle));
  return bundle;
}

Result<CompressedModel> Compressor::run(const CompressSpec& spec) {
  FS_TRY(spec.validate());
  FS_TRY(load());
  CompressedModel out;
  report("measure the original", 0);
  FS_ASSIGN(out.before, hooks_.measure(source_));
  FS_TRY(check_cancelled());
  FS_ASSIGN(out.bundle, compress(spec));
  report("measure the variant", 0);
  FS_ASSIGN(out.after, hooks_.measure(out.bundle));
  int tried = 0;
  FS_TRY(judge(spec, out.before, out.after, [&](const CompressSpec& other) -> Result<Measurement> {
    FS_TRY(check_cancelled());
    report(fmt::format("try {}", other.text()), ++tried / 8.0);
    FS_ASSIGN(const ModelBundle variant, compress(other));
    return hooks_.measure(variant);
  }));
  out.card = make_card(spec, out.before, out.after);
  return out;
}

}  // namespace fastserve
