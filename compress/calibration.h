// What flows into each matrix of a model on real text.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/cancel.h"
#include "base/result.h"
#include "model/device.h"

namespace fastserve {

/// The l2 norm of every input channel of every matrix, over all tokens seen.
///
/// Threads: one caller. Sums squares in double, in the order of the calls.
class ChannelNorms {
 public:
  /// `x` [rows, channels] is the input of the matrix `parameter` for some tokens.
  void observe(std::string_view parameter, const float* x, int rows, int channels);

  /// [channels]; empty when the matrix was never seen.
  std::vector<double> norms(std::string_view parameter) const;
  int64_t tokens() const { return tokens_; }  ///< rows seen by the matrix that saw most

 private:
  struct Sums {
    std::vector<double> squares;
    int64_t rows = 0;
  };
  std::map<std::string, Sums, std::less<>> sums_;
  int64_t tokens_ = 0;
};

/// Runs the sequences through the model (held as floats) in fp32 on `device`. A sequence longer
/// than the model's context is cut. kInvalidArgument when there is no token; kCancelled.
Result<ChannelNorms> calibrate(Device& device, const ModelBundle& bundle,
                               std::span<const std::vector<int32_t>> sequences,
                               const CancelFlag* cancel = nullptr);

}  // namespace fastserve
