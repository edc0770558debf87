#include "actors/serving_draft.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/huggingface.h"
#include "model/parameters.h"
#include "serve/memory.h"

namespace fastserve {
namespace {

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

Result<ServingDraft> draft_serving(const ServingSystem::Model& model,
                                   const SchedulerLimits& limits) {
  ServingDraft out;
  const std::string where = model.name + "@" + model.version;
  FS_ASSIGN(out.config, bundle_config(model.bundle));
  FS_ASSIGN(out.formats, bundle_weight_formats(model.bundle));
  const auto json = model.bundle.documents.find("tokenizer.json");
  if (json == model.bundle.documents.end())
    return Error{ErrorCode::kNotFound, "has no tokenizer.json", where,
                 "import the model with its tokenizer"};
  FS_ASSIGN(out.tokenizer, Tokenizer::from_json(json->second, where + "/tokenizer.json"));
  const ParameterLayout layout(out.config);
  const Parameter& table = layout.parameters().front();
  if (!out.formats.contains(table.name)) {
    FS_ASSIGN(const TensorView stored, find_parameter(table, *model.bundle.tensors));
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

Status check_serving_memory(const std::vector<ServingDraft>& drafts, const Device& device,
                            uint64_t limit) {
  DecoderMemory need;
  std::vector<DecoderMemory> needs;
  for (const ServingDraft& d : drafts) {
    DecoderMemory m = estimate_decoder_memory(d.config, d.formats, d.options, d.token_table);
    if (!device.host_memory()) m = on_device(m, d.config, d.options);
    need.weights += m.weights;
    need.kv += m.kv;
    need.activations += m.activations;
    need.loading = std::max(need.loading, m.loading);
    needs.push_back(m);
  }
  const uint64_t have = limit > 0 ? limit : device.available_memory();
  if (need.total() <= have) return {};
  return Error{
      ErrorCode::kResourceExhausted,
      fmt::format("serving needs {} of memory (weights {}, KV cache {}, activations {}, "
                  "loading {}) and {} can be had: {}",
                  human_bytes(need.total()), human_bytes(need.weights), human_bytes(need.kv),
                  human_bytes(need.activations), human_bytes(need.loading), human_bytes(have),
                  what_fits(needs, have)),
      device.host_memory() ? "" : device.description(),
      "deploy fewer models, a compressed one, one with a shorter context, or keys and values as "
      "int8 (--kv int8)"};
}

}  // namespace fastserve
