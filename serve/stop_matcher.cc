#include "serve/stop_matcher.h"

#include <algorithm>

namespace fastserve {

std::string StopMatcher::push(std::string_view text) {
  if (matched_) return "";
  if (stops_.empty()) return std::string(text);
  held_ += text;
  size_t begin = std::string::npos, end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const size_t after = at + stop.size();
    if (after < end || (after == end && at < begin)) {
      begin = at;
      end = after;
    }
  }
  if (begin != std::string::npos) {
    matched_ = true;
    held_.resize(begin);
    return std::move(held_);
  }
  size_t keep = 0;  // the longest end of held_ that some stop string begins with
  for (const std::string& stop : stops_)
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n)
      if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, n))) keep = n;
  std::string settled = held_.substr(0, held_.size() - keep);
  held_.erase(0, settled.size());
  return settled;
}

std::string StopMatcher::finish() {
  std::string rest = std::move(held_);
  held_.clear();
  return matched_ ? "" : rest;
}

}  // namespace fastserve
