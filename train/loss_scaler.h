// Dynamic loss scaling for half precision (Micikevicius et al. 2018).
#pragma once

#include <cstdint>

namespace fastserve {

/// Starts at 65536, doubles after 2000 good steps in a row, halves when a gradient overflows.
/// A plain value: copy it into a checkpoint.
struct LossScaler {
  static constexpr double kStart = 65536, kMost = 16777216;
  static constexpr int kGrowAfter = 2000;

  double scale = kStart;
  int64_t good_steps = 0;  ///< since the last change

  void good() {
    if (++good_steps < kGrowAfter) return;
    good_steps = 0;
    if (scale < kMost) scale *= 2;
  }
  /// False when the scale cannot shrink further: the overflow is not the scale's fault.
  bool overflow() {
    good_steps = 0;
    if (scale <= 1) return false;
    scale /= 2;
    return true;
  }
};

}  // namespace fastserve
