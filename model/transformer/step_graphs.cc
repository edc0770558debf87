#include "model/transformer/step_graphs.h"

#include <algorithm>

namespace fastserve {

Status StepGraphs::run(const StepShape& shape, const std::function<void()>& work) {
  const auto known = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& e) { return e.shape == shape; });
  if (most_ == 0 || known == entries_.end()) {
    if (most_ > 0) entries_.push_front({shape, nullptr, 0});
    if (entries_.size() > most_) entries_.pop_back();
    work();
    return {};
  }
  entries_.splice(entries_.begin(), entries_, known);
  Entry& entry = entries_.front();
  if (!entry.graph || entry.scratch != ops_.scratch_version()) FS_TRY(capture(entry, work));
  if (!entry.graph) {
    most_ = 0;  // the card has no room for graphs, most likely: it would have none next time
    entries_.clear();
    work();
    return {};
  }
  device_.launch(*entry.graph);
  ++started_;
  return {};
}

Status StepGraphs::capture(Entry& entry, const std::function<void()>& work) {
  entry.graph.reset();
  FS_TRY(device_.sync());  // what has failed before is not the capture's
  device_.begin_capture();
  work();
  entry.graph = device_.end_capture();
  entry.scratch = ops_.scratch_version();
  if (!entry.graph && !device_.sync().ok()) return device_.sync();  // again: when the card is lost
  return {};
}

}  // namespace fastserve
