// One line of progress on a terminal.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/clock.h"

namespace fastserve {

/// Draws "label [#####     ] 42 %  detail  ETA 0:12" on stderr, at most ten times a second, and
/// wipes it when destroyed. Silent when not `shown`. Threads: one caller at a time.
class ProgressBar {
 public:
  /// `bytes`: what the whole comes to, to tell the rate; 0: unknown.
  ProgressBar(bool shown, std::string label, uint64_t bytes = 0);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  /// eta_seconds < 0: estimated from the fraction and the time so far.
  void update(double fraction, std::string_view detail = {}, double eta_seconds = -1);
  void clear();

 private:
  bool shown_;
  std::string label_;
  uint64_t bytes_;
  SystemClock clock_;
  Nanoseconds started_, drawn_{-1'000'000'000};
};

/// "label [####    ] text" in at most `columns`: the bar gives way first, then the text's end.
std::string progress_line(std::string_view label, double fraction, std::string_view text,
                          int columns);

/// "1:02:03", "4:05"
std::string clock_text(double seconds);

}  // namespace fastserve
