#include "cluster/unfit_nodes.h"

#include <algorithm>

namespace fastserve {

void UnfitNodes::happened(Trouble& trouble, std::string why, Nanoseconds now) {
  if (now < trouble.until) return;  // the same once more
  trouble.hold = std::clamp(2 * trouble.hold, kFirst, kLongest);
  trouble.until = now + trouble.hold;
  trouble.why = std::move(why);
}

void UnfitNodes::apart(const std::string& a, const std::string& b, Nanoseconds now) {
  if (a != b) happened(pairs_[std::minmax(a, b)], "", now);
}

bool UnfitNodes::of_its_own(ErrorCode why) {
  return why != ErrorCode::kInvalidArgument && why != ErrorCode::kCorrupt &&
         why != ErrorCode::kCancelled;
}

void UnfitNodes::failed(const std::string& node, const std::string& why, Nanoseconds now) {
  happened(nodes_[node], why, now);
}

void UnfitNodes::forget(const std::string& node) {
  nodes_.erase(node);
  std::erase_if(pairs_, [&](const auto& entry) {
    return entry.first.first == node || entry.first.second == node;
  });
}

std::map<std::string, std::string> UnfitNodes::leave_out(const std::vector<std::string>& nodes,
                                                         Nanoseconds now) const {
  std::map<std::string, std::string> out;
  for (const std::string& node : nodes)
    if (const auto at = nodes_.find(node); at != nodes_.end() && now < at->second.until)
      out[node] = at->second.why;
  std::map<std::string, std::vector<std::string>> others;  // of each, from whom it is apart
  const auto here = [&](const std::string& node) {
    return std::find(nodes.begin(), nodes.end(), node) != nodes.end() && !out.contains(node);
  };
  for (const auto& [names, pair] : pairs_) {
    if (now >= pair.until || !here(names.first) || !here(names.second)) continue;
    others[names.first].push_back(names.second);
    others[names.second].push_back(names.first);
  }
  for (;;) {
    const auto fewer = [&](const std::string& a, const std::string& b) {
      return others[a].size() < others[b].size();
    };
    const auto most = std::max_element(nodes.begin(), nodes.end(), fewer);
    if (most == nodes.end() || others[*most].empty()) return out;
    out[*most] = "it and node " + others[*most].front() + " cannot reach each other";
    for (const std::string& other : std::exchange(others[*most], {}))
      std::erase(others[other], *most);
  }
}

}  // namespace fastserve
