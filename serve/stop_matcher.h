// Finds stop strings in text that arrives in pieces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fastserve {

/// Passes text on as soon as it cannot become part of a stop string.
///
/// Promises: what comes out does not depend on how the text was cut into pieces, and holds no part
/// of the stop string that ended it: the one complete first (of several, the longest).
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  /// The settled text. After a match nothing more comes out.
  std::string push(std::string_view text);
  /// The end of the text: what was held back.
  std::string finish();
  bool matched() const { return matched_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool matched_ = false;
};

}  // namespace fastserve
