#include "compress/compressor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "compress/measure.h"
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

Status Compressor::prepare() {
  if (layout_) return {};
  FS_ASSIGN(const auto formats, bundle_weight_formats(source_));
  if (!formats.empty())
    return Error{ErrorCode::kUnsupported,
                 fmt::format("its weights are quantised already ({})",
                             weight_format_name(formats.begin()->second)),
                 source_.tensors->where(), "compress the model it was made from"};
  FS_ASSIGN(config_, bundle_config(source_));
  layout_.emplace(config_);
  return {};
}

Result<std::vector<float>> Compressor::read(const Parameter& parameter) const {
  FS_TRY(check_cancelled());
  FS_ASSIGN(const TensorView view, find_parameter(parameter, *source_.tensors));
  std::vector<float> values(parameter.size());
  read_parameter(parameter, view, values);
  return values;
}

Result<Compressor::Plan> Compressor::plan(const CompressSpec& spec) {
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
  Plan plan{config_, {}};
  if (spec.pruning != PruningKind::kNeurons) return plan;
  const auto reader = [this](const Parameter& parameter) { return read(parameter); };
  FS_ASSIGN(plan.neurons, choose_neurons(config_, *layout_, reader, *norms_, spec.sparsity));
  plan.config = plan.neurons->config;
  return plan;
}

Status Compressor::mask(const CompressSpec& spec, const Parameter& parameter,
                        std::span<float> values) const {
  PruningScope scope = PruningScope::k2of4;
  if (spec.pruning == PruningKind::kMagnitude) scope = PruningScope::kTensor;
  if (spec.pruning == PruningKind::kWanda) scope = PruningScope::kRow;
  std::vector<double> norms;
  if (spec.needs_calibration()) {
    norms = norms_->norms(parameter.name);
    if (norms.size() != static_cast<size_t>(parameter.cols))
      return Error{ErrorCode::kInternal, "the calibration has not seen this matrix", parameter.name,
                   ""};
  }
  apply_mask(pruning_mask(values, parameter.rows, parameter.cols, norms, scope, spec.sparsity),
             values);
  return {};
}

Result<std::vector<float>> Compressor::pruned(const CompressSpec& spec, const Plan& plan,
                                              const Parameter& parameter) const {
  FS_ASSIGN(std::vector<float> values, read(parameter));
  if (plan.neurons) return without_neurons(*layout_, *plan.neurons, parameter, std::move(values));
  if (spec.pruning != PruningKind::kNone && is_projection(*layout_, parameter))
    FS_TRY(mask(spec, parameter, values));
  return values;
}

/// Turns parameters into the variant's tensors, one by one.
class Compressor::Packer {
 public:
  Packer(const CompressSpec& spec, const ModelBundle& source, const ParallelFor& parallel)
      : spec_(spec),
        source_(source),
        parallel_(parallel),
        tensors_(std::make_shared<TensorMap>(source.tensors->where() + " (compressed)")) {}

  /// `parameter` is one of `layout`, the variant's.
  Status add(const ParameterLayout& layout, const Parameter& parameter,
             std::span<const float> values) {
    const bool head = parameter.name == kHead;
    if (head || is_projection(layout, parameter)) {
      const WeightFormat format = head ? spec_.head_format() : spec_.weights;
      if (is_quantised(format))
        return add_quantised_matrix(parameter.name, parameter, values, format);
      tensors_->add(parameter.name, float_tensor(parameter, values, float_type(format)));
      return {};
    }
    const DType dtype =
        parameter.decay ? table_type(spec_, *source_.tensors, parameter, values) : DType::kF32;
    tensors_->add(parameter.name, float_tensor(parameter, values, dtype));
    return {};
  }

  /// The head of a tied model, beside its embedding.
  Status add_tied_head(const Parameter& table, std::span<const float> values) {
    if (!is_quantised(spec_.head_format())) return {};
    return add_quantised_matrix(kHead, table, values, spec_.head_format());
  }

  Result<ModelBundle> finish(const ModelConfig& config) {
    ModelBundle bundle{source_.documents, std::move(tensors_)};
    FS_ASSIGN(bundle.documents["config.json"], config_text(source_, config, weights_));
    FS_TRY(check_bundle(bundle));
    return bundle;
  }

 private:
  Status add_quantised_matrix(const std::string& name, const Parameter& shape,
                              std::span<const float> values, WeightFormat format) {
    FS_ASSIGN(const QuantisedMatrix matrix,
              quantise(values, shape.rows, shape.cols, format, name, parallel_));
    add_quantised(*tensors_, name, matrix);
    weights_.set(name, weight_format_name(format));
    return {};
  }

  const CompressSpec& spec_;
  const ModelBundle& source_;
  const ParallelFor& parallel_;
  std::shared_ptr<TensorMap> tensors_;
  Json weights_{Json::Object{}};
};

Result<ModelBundle> Compressor::compress(const CompressSpec& spec) {
  FS_TRY(spec.validate());
  FS_TRY(prepare());
  FS_ASSIGN(const Plan made, plan(spec));
  const ParameterLayout layout(made.config);
  Packer packer(spec, source_, hooks_.parallel);
  for (size_t i = 0; i < layout.parameters().size(); i++) {
    const Parameter &from = layout_->parameters()[i], &to = layout.parameters()[i];
    report("compress", static_cast<double>(to.offset) / static_cast<double>(layout.elements()));
    FS_ASSIGN(const std::vector<float> values, pruned(spec, made, from));
    FS_TRY(packer.add(layout, to, values));
    if (to.offset == layout.token_embedding().offset && made.config.tied_embeddings)
      FS_TRY(packer.add_tied_head(to, values));
  }
  return packer.finish(made.config);
}

Result<CompressedModel> Compressor::run(const CompressSpec& spec) {
  FS_TRY(spec.validate());
  FS_TRY(prepare());
  CompressedModel out;
  report("measure the original", 0);
  FS_ASSIGN(out.before, hooks_.measure(source_));
  FS_TRY(check_cancelled());
  FS_ASSIGN(out.bundle, compress(spec));
  report("measure the variant", 0);
  FS_ASSIGN(out.after, hooks_.measure(out.bundle));
  const auto trial = [&](const CompressSpec& other) -> Result<Measurement> {
    FS_ASSIGN(const ModelBundle variant, compress(other));
    FS_ASSIGN(const uint64_t bytes, bundle_bytes(variant));
    // Too large is too large: the text need not be read to know.
    if (other.max_bytes > 0 && bytes > other.max_bytes) return Measurement::size_alone(bytes);
    report(fmt::format("try {}", other.text()), 0);
    return hooks_.measure(variant);
  };
  FS_TRY(judge(spec, out.before, out.after, trial));
  out.card = make_card(spec, out.before, out.after);
  return out;
}

}  // namespace fastserve
