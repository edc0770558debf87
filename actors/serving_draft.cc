#include "actors/serving_draft.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/huggingface.h"
#include "model/parameters.h"
#include "serve/memory.h"

namespace fastserve {
namespace {

/// Names, types and shapes of a model's tensors, without their bytes.
class Glance final : public TensorSource {
 public:
  explicit Glance(const TensorSource& tensors) : tensors_(tensors) {}
  std::vector<std::string> names() const override { return tensors_.names(); }
  bool contains(std::string_view name) const override { return tensors_.contains(name); }
  std::string where() const override { return tensors_.where(); }
  Result<TensorView> tensor(std::string_view name) const override { return tensors_.glance(name); }

 private:
  const TensorSource& tensors_;
};

DecoderMemory need_of(const ServingDraft& d, const Device& device) {
  const DecoderMemory m = estimate_decoder_memory(d.config, d.formats, d.options, d.token_table);
  return device.host_memory() ? m : on_device(m, d.config, d.options);
}

uint64_t memory_of(const Device& device, uint64_t limit) {
  const uint64_t available = device.available_memory();
  return limit > 0 ? std::min(limit, available) : available;
}

/// What would fit where all of it does not: the models with a shorter context, or the first of
/// them.
std::string what_fits(const std::vector<DecoderMemory>& needs, uint64_t have) {
  uint64_t fixed = 0, token = 0, loading = 0;
  size_t first = 0;  // so many of the models fit as they are
  uint64_t taken = 0;
  for (const DecoderMemory& m : needs) {
    loading = std::max(loading, m.loading);
    fixed += m.weights + m.activations;
    token += m.kv_token;
    taken += m.weights + m.kv + m.activations;
    if (taken + loading <= have) ++first;
  }
  fixed += loading;
  constexpr uint64_t kWorthIt = 64;  // tokens of context; an answer needs some
  if (have > fixed && (have - fixed) / token >= kWorthIt)
    return fmt::format("a context of {} tokens fits{}", (have - fixed) / token / 16 * 16,
                       needs.size() > 1 ? ", of each model" : "");
  if (first > 0) return fmt::format("the first {} of the {} models fit", first, needs.size());
  return "the weights alone are too large";
}

}  // namespace

Result<ServingDraft> draft_serving(const ServingSystem::Model& model, const SchedulerLimits& limits,
                                   bool turns) {
  ServingDraft out;
  const std::string where = out.name = model.name + "@" + model.version;
  FS_ASSIGN(out.config, bundle_config(model.bundle));
  FS_ASSIGN(out.formats, bundle_weight_formats(model.bundle));
  const auto json = model.bundle.documents.find("tokenizer.json");
  if (json == model.bundle.documents.end())
    return Error{ErrorCode::kNotFound, "has no tokenizer.json", where,
                 "import the model with its tokenizer"};
  FS_ASSIGN(out.tokenizer, Tokenizer::from_json(json->second, where + "/tokenizer.json"));
  const auto glance = std::make_shared<const Glance>(*model.bundle.tensors);
  if (turns) FS_TRY(check_bundle({model.bundle.documents, glance}));
  const TensorSource& tensors = turns ? *glance : *model.bundle.tensors;
  const ParameterLayout layout(out.config);
  const Parameter& table = layout.parameters().front();
  if (!out.formats.contains(table.name)) {
    FS_ASSIGN(const TensorView stored, find_parameter(table, tensors));
    out.token_table = stored.dtype;
  }
  out.options = model.options;
  if (out.options.max_logits == 0)
    out.options.max_logits = std::min(out.options.max_rows, limits.max_running);
  if (out.options.kv_blocks <= 0)
    out.options.kv_blocks =
        (out.config.max_positions + out.options.block_tokens - 1) / out.options.block_tokens;
  return out;
}

namespace {

Error does_not_fit(const std::string& what, const std::vector<DecoderMemory>& needs, uint64_t have,
                   const Device& device, std::string hint) {
  DecoderMemory need;
  for (const DecoderMemory& m : needs) {
    need.weights += m.weights;
    need.kv += m.kv;
    need.activations += m.activations;
    need.loading = std::max(need.loading, m.loading);
  }
  return {ErrorCode::kResourceExhausted,
          fmt::format("{} needs {} of memory (weights {}, KV cache {}, activations {}, loading {}) "
                      "and {} can be had: {}",
                      what, human_bytes(need.total()), human_bytes(need.weights),
                      human_bytes(need.kv), human_bytes(need.activations),
                      human_bytes(need.loading), human_bytes(have), what_fits(needs, have)),
          device.host_memory() ? "" : device.description(), std::move(hint)};
}

constexpr const char* kSmaller =
    "a compressed one, one with a shorter context, or keys and values as int8 (--kv int8)";

}  // namespace

Status check_serving_memory(const std::vector<ServingDraft>& drafts, const Device& device,
                            uint64_t limit) {
  const uint64_t have = memory_of(device, limit);
  std::vector<DecoderMemory> needs;
  uint64_t all = 0, loading = 0;
  bool each = true;  // fits by itself
  for (const ServingDraft& d : drafts) {
    const DecoderMemory m = needs.emplace_back(need_of(d, device));
    all += m.total() - m.loading;
    loading = std::max(loading, m.loading);
    each = each && m.total() <= have;
  }
  if (all + loading <= have) return {};
  const char* turns = each ? "let them take turns in it (--turns), or deploy fewer models, "
                           : "deploy fewer models, ";
  return does_not_fit("serving", needs, have, device, std::string(turns) + kSmaller);
}

Result<ModelTurns> turns_in_memory(const std::vector<ServingDraft>& drafts, const Device& device,
                                   uint64_t limit, Nanoseconds turn) {
  const uint64_t have = memory_of(device, limit);
  std::vector<ModelTurns::Need> needs;
  for (const ServingDraft& d : drafts) {
    const DecoderMemory m = need_of(d, device);
    if (m.total() > have)
      return does_not_fit("serving " + d.name + " by itself", {m}, have, device,
                          std::string("leave it out, or deploy ") + kSmaller);
    needs.push_back({m.total() - m.loading, m.loading});
  }
  return ModelTurns(std::move(needs), have, turn);
}

}  // namespace fastserve
