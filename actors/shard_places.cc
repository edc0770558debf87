#include "actors/shard_places.h"

#include <algorithm>

namespace fastserve {

size_t count_stripes(const TrainSpec& spec, size_t elements, const std::vector<JobNode>& nodes) {
  constexpr size_t kLeast = 1 << 18;  // elements: a message of 1 MiB hides what a message costs
  constexpr size_t kMost = 8;
  // Who is apart sends and gets everything at once. A matrix of low rank is not to be cut.
  if (!spec.consistency.exact() || spec.gradients.kind == GradientKind::kLowRank ||
      spec.weights_back.delta.kind == GradientKind::kLowRank)
    return 1;
  size_t lanes = 0;
  for (const JobNode& node : nodes) lanes += node.serves ? static_cast<size_t>(node.lanes) : 0;
  return std::clamp<size_t>(elements / (std::max<size_t>(1, lanes) * kLeast), 1, kMost);
}

std::vector<std::string> serving_nodes(const std::vector<JobNode>& nodes) {
  std::vector<std::string> names;
  for (const JobNode& node : nodes)
    if (node.serves) names.push_back(node.name);
  return names;
}

std::vector<std::string> place_shards(const std::vector<JobNode>& nodes, size_t most,
                                      size_t stripes) {
  std::vector<std::string> stripe;
  for (const JobNode& node : nodes)
    if (node.serves) stripe.insert(stripe.end(), static_cast<size_t>(node.lanes), node.name);
  std::vector<std::string> owners;
  if (stripe.size() <= most) {
    stripes = std::min(stripes, most / std::max<size_t>(1, stripe.size()));
    for (size_t i = 0; i < stripes; i++) owners.insert(owners.end(), stripe.begin(), stripe.end());
    return owners;
  }
  for (const JobNode& node : nodes)
    if (node.serves && owners.size() < most) owners.push_back(node.name);
  return owners;
}

}  // namespace fastserve
