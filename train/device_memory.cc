#include "train/device_memory.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/file.h"
#include "train/parameter_shard.h"

namespace fastserve {

DeviceNeed device_need(const ModelConfig& config, const ParameterLayout& layout,
                       Precision precision, int rows, const DeviceShare& share,
                       Recompute recompute) {
  constexpr uint64_t kMostLogits = 320 << 20;  // bytes of them that an operation holds at once
  const uint64_t elements = layout.elements();
  const uint64_t logits = static_cast<uint64_t>(rows) * static_cast<uint64_t>(config.vocab_size);
  DeviceNeed need;
  need.weights = elements * (sizeof(float) + (precision == Precision::kFloat32 ? 4 : 2));
  uint64_t own = elements;  // parameters that this card brings to the next step
  if (share.cards > 1) {    // shares end where tiles do
    uint64_t largest = 0;
    for (const TrainWeights::Tile& tile : TrainWeights::tiles_of(config, layout))
      largest = std::max<uint64_t>(largest, tile.size);
    own = std::min(elements, elements / static_cast<uint64_t>(share.cards) + 2 * largest);
  }
  need.optimiser = share.optimiser ? own * 2 * sizeof(float) : 0;
  need.gradients = sizeof(float) * (elements * static_cast<uint64_t>(share.gradients) +
                                    (share.cards > 1 ? own : 0));
  need.activations = TrainPass::estimate(config, layout, precision, rows, recompute).activations;
  need.scratch = std::min(logits * sizeof(float), kMostLogits) +
                 static_cast<uint64_t>(share.scratch) * sizeof(float) *
                     std::min<uint64_t>(own, ParameterShard::kPiece);
  return need;
}

Result<Recompute> choose_recompute(const Device& device, const ModelConfig& config,
                                   const ParameterLayout& layout, Precision precision, int rows,
                                   const DeviceShare& share, std::optional<Recompute> wanted) {
  const uint64_t have = device.available_memory();
  const Recompute least = wanted.value_or(Recompute::kLayer);
  const auto need_of = [&](int tokens, Recompute recompute) {
    DeviceNeed need = device_need(config, layout, precision, tokens, share, recompute);
    need.scratch += device.library_memory();
    return need;
  };
  for (const Recompute recompute : {wanted.value_or(Recompute::kNone), least})
    if (need_of(rows, recompute).total() <= have) return recompute;
  int fits = 0;
  for (int most = rows - 1; fits < most;) {
    const int middle = fits + (most - fits + 1) / 2;
    if (need_of(middle, least).total() <= have)
      fits = middle;
    else
      most = middle - 1;
  }
  const DeviceNeed need = need_of(rows, least);
  const std::string what = fmt::format(
      "training needs {} of its memory (weights {}, {}gradients {}, activations of {} tokens {}, "
      "scratch {}) and {} are free",
      human_bytes(need.total()), human_bytes(need.weights),
      share.optimiser ? "optimiser " + human_bytes(need.optimiser) + ", " : "",
      human_bytes(need.gradients), rows, human_bytes(need.activations), human_bytes(need.scratch),
      human_bytes(have));
  if (fits == 0)
    return Error{ErrorCode::kResourceExhausted, what, device.description(),
                 share.optimiser ? "leave its state to the host with --optimiser host, choose a "
                                   "smaller model, or --device cpu"
                                 : "choose a smaller model, or --device cpu"};
  return Error{ErrorCode::kResourceExhausted,
               fmt::format("{}; microbatches of {} tokens fit", what, fits), device.description(),
               "cut a step into more --microbatches, or give a smaller --batch-size or --block"};
}

}  // namespace fastserve
