// What a compression calibrates and measures on: tokens of the text that a model was trained on, or
// of another.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "api/node.h"

namespace fastserve {

struct CompressionText {
  using Sequences = std::vector<std::vector<int32_t>>;
  std::string path;  ///< where it comes from, for the variant's record
  Sequences held_out, calibration;

  /// For the variant's record: what its figures were measured on.
  Json to_json() const;

  /// For another process: some hundred kilobytes.
  std::string encode() const;
  static constexpr uint64_t kMostBytes = uint64_t{16} << 20;
  /// kCorrupt for what is none. Whether the tokens are the model's is for those who use them.
  static Result<CompressionText> decode(std::string_view bytes);
};

/// Of `data`, or of what the model was trained on when that is empty, split as training split it:
/// so that nothing is measured on text that was learned from.
Result<CompressionText> compression_text(const Path& data, const StoredModel& model);

}  // namespace fastserve
