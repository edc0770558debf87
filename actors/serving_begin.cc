#include "actors/serving_begin.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "actors/serving_draft.h"
#include "model/parameters.h"
#include "model/preloaded.h"

namespace fastserve {
namespace {

using LoadedModel = ServingSystem::LoadedModel;

ServedModel describe(const ServingSystem::Model& model, const ServingDraft& draft,
                     const Engine& engine) {
  ServedModel info;
  info.name = model.name;
  info.version = model.version;
  info.architecture = architecture_name(draft.config.architecture);
  const WeightFormat format =
      draft.formats.empty() ? draft.options.weights : draft.formats.rbegin()->second;
  info.weight_format = weight_format_name(format);
  info.parameters = static_cast<int64_t>(ParameterLayout(draft.config).trainable());
  info.context_length = engine.context_length();
  info.vocab_size = draft.config.vocab_size;
  return info;
}

/// Of all models that are loaded before the deployment is ready.
struct Progress {
  std::function<void(double)> whole;
  size_t models = 1;
  /// Of the i-th of them.
  std::function<void(double)> part(size_t i) const {
    return [i, p = *this](double done) {
      if (p.whole) p.whole((static_cast<double>(i) + done) / static_cast<double>(p.models));
    };
  }
};

/// What preload() takes for them; nothing is read for it.
Result<uint64_t> preloaded_bytes(const TensorSource& tensors) {
  uint64_t bytes = 0;
  for (const std::string& name : tensors.names()) {
    FS_ASSIGN(const TensorView view, tensors.glance(name));
    bytes += (static_cast<uint64_t>(view.elements()) * dtype_bytes(view.dtype) + 63) / 64 * 64;
  }
  return bytes;
}

/// Brings as many as fit to pinned memory, in their order; the others stay where they are.
Status keep_on_host(const ServingSystem::Config& config, Device& device, const Progress& progress,
                    const std::function<bool()>& stopped, std::vector<ModelBundle>& bundles) {
  uint64_t left = config.host_memory;
  for (size_t i = 0; i < bundles.size(); ++i) {
    const ServingSystem::Model& model = config.models[i];
    const auto stays = [&](const std::string& why) {
      config.log.info(
          fmt::format("{}@{} comes from where it is stored: {}", model.name, model.version, why));
    };
    FS_ASSIGN(const uint64_t bytes, preloaded_bytes(*bundles[i].tensors));
    if (bytes > left) {
      stays(fmt::format("its weights take {}, and {} of the host's memory are left for such",
                        human_bytes(bytes), human_bytes(left)));
      continue;
    }
    auto kept = preload(device, bundles[i], left, {progress.part(i), stopped});
    if (!kept.ok() && kept.error().code != ErrorCode::kResourceExhausted) return kept.error();
    if (!kept.ok()) {
      stays(kept.error().message());
      continue;
    }
    left -= bytes;
    config.log.info(fmt::format("{}@{} comes from pinned memory, where its weights take {}",
                                model.name, model.version, human_bytes(bytes)));
    bundles[i] = *std::move(kept);
  }
  return {};
}

/// Makes decoders of a model for as long as it is deployed. The first one tells its progress. With
/// `turns` each reads what is stored anew: the store is open to other processes meanwhile.
DecoderMaker maker_of(Device& device, const ModelBundle& bundle, const DecoderOptions& options,
                      std::function<void(double)> first,
                      const std::shared_ptr<const CancelFlag>& stop, bool turns) {
  return [&device, bundle, options, stop, turns,
          progress = std::make_shared<std::function<void(double)>>(std::move(first))] {
    ModelBundle now = bundle;
    if (const auto anew = turns ? bundle.tensors->anew() : nullptr) now.tensors = anew;
    return Decoder::begin(device, now, options, std::exchange(*progress, {}),
                          [stop] { return stop->raised(); });
  };
}

}  // namespace

SchedulerLimits limits_of(const ServingSystem::Config& config) {
  SchedulerLimits limits = config.limits;
  limits.max_waiting = config.max_queue + limits.max_running;
  return limits;
}

Result<BegunModels> begin_models(const ServingSystem::Config& config, Device& device,
                                 const std::shared_ptr<const CancelFlag>& stop) {
  const SchedulerLimits limits = limits_of(config);
  const size_t models = config.models.size();
  std::vector<ServingDraft> drafts;
  for (const ServingSystem::Model& model : config.models) {
    FS_ASSIGN(ServingDraft d, draft_serving(model, limits, config.turns));
    drafts.push_back(std::move(d));
  }
  BegunModels out;
  std::vector<size_t> first;  // to be loaded
  if (config.turns) {
    FS_ASSIGN(out.turns, turns_in_memory(drafts, device, config.memory_limit, config.turn));
    first = out.turns->begin();
  }
  if (first.size() == models) out.turns.reset();  // nobody need leave
  if (!out.turns) {
    FS_TRY(check_serving_memory(drafts, device, config.memory_limit));
    first.clear();
    for (size_t i = 0; i < models; ++i) first.push_back(i);
  }
  std::vector<ModelBundle> bundles;
  for (const ServingSystem::Model& model : config.models) bundles.push_back(model.bundle);
  const bool keeps = out.turns && config.host_memory > 0;
  const size_t kept = keeps ? models : 0;
  const Progress progress{config.progress, kept + first.size()};
  if (keeps && device.host_memory())
    config.log.info("no pinned memory is taken: the device's memory is the host's");
  else if (keeps)
    FS_TRY(keep_on_host(
        config, device, progress, [stop] { return stop->raised(); }, bundles));
  for (size_t i = 0, begun = 0; i < models; ++i) {
    const bool now = begun < first.size() && first[begun] == i;
    const DecoderMaker make =
        maker_of(device, bundles[i], drafts[i].options,
                 now ? progress.part(kept + begun++) : std::function<void(double)>(), stop,
                 out.turns.has_value());
    LoadedModel model;
    if (out.turns) {
      model.engine = std::make_unique<Engine>(drafts[i].config, drafts[i].options, make,
                                              drafts[i].tokenizer, limits);
      if (now) FS_TRY(model.engine->come());
    } else {
      FS_ASSIGN(auto decoder, make());
      model.engine = std::make_unique<Engine>(std::move(decoder), drafts[i].tokenizer, limits);
    }
    model.info = describe(config.models[i], drafts[i], *model.engine);
    model.documents = config.models[i].bundle.documents;
    out.models.push_back(std::move(model));
  }
  return out;
}

std::string loaded_line(const ServedModel& info, const Decoder& decoder) {
  const DecoderOptions& options = decoder.options();
  return fmt::format(
      "loaded {}@{}: {} parameters as {}, {} tokens of context; KV cache of {} tokens as {}, {}",
      info.name, info.version, info.parameters, info.weight_format, info.context_length,
      int64_t{options.kv_blocks} * options.block_tokens, kv_type_name(options.kv),
      human_bytes(decoder.kv_bytes()));
}

std::string turn_line(const std::vector<std::string>& names, const EngineGroup::Turn& turn,
                      const EngineGroup& engines, Nanoseconds took) {
  std::vector<std::string> left;
  for (const size_t i : turn.left) left.push_back(names[i]);
  const std::string place =
      left.empty() ? "" : fmt::format(", in place of {}", fmt::join(left, ", "));
  if (turn.failure)
    return fmt::format("{} could not come into the device's memory{}: {}", names[turn.came], place,
                       turn.failure->message());
  const Decoder& decoder = engines.engine(turn.came).decoder();
  return fmt::format("{} came into the device's memory in {:.3f} s{}: weights {}, KV cache {}",
                     names[turn.came], std::chrono::duration<double>(took).count(), place,
                     human_bytes(decoder.weight_bytes()), human_bytes(decoder.kv_bytes()));
}

}  // namespace fastserve
