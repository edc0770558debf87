#include "cli/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace fastserve {

std::string clock_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  const int64_t h = whole / 3600, m = whole / 60 % 60, s = whole % 60;
  return h > 0 ? fmt::format("{}:{:02}:{:02}", h, m, s) : fmt::format("{}:{:02}", m, s);
}

ProgressBar::ProgressBar(bool shown, std::string label)
    : shown_(shown), label_(std::move(label)), started_(clock_.now()) {}

ProgressBar::~ProgressBar() { clear(); }

void ProgressBar::update(double fraction, std::string_view detail, double eta_seconds) {
  if (!shown_) return;
  const Nanoseconds now = clock_.now();
  if (fraction < 1 && now - drawn_ < std::chrono::milliseconds(100)) return;
  drawn_ = now;
  fraction = std::clamp(fraction, 0.0, 1.0);
  constexpr int kWidth = 24;
  const int done = static_cast<int>(fraction * kWidth);
  const double spent = std::chrono::duration<double>(now - started_).count();
  if (eta_seconds < 0 && fraction > 0.01) eta_seconds = spent * (1 - fraction) / fraction;
  const std::string bar = std::string(static_cast<size_t>(done), '#') +
                          std::string(static_cast<size_t>(kWidth - done), ' ');
  fmt::print(stderr, "\r\033[K{} [{}] {:3.0f} %  {}  ETA {}", label_, bar, 100 * fraction, detail,
             clock_text(eta_seconds));
  std::fflush(stderr);
}

void ProgressBar::clear() {
  if (shown_ && drawn_.count() > 0) fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
}

}  // namespace fastserve
