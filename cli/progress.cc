#include "cli/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/file.h"

namespace fastserve {
namespace {

int terminal_columns() {
  struct winsize size {};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::string clock_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  const int64_t h = whole / 3600, m = whole / 60 % 60, s = whole % 60;
  return h > 0 ? fmt::format("{}:{:02}:{:02}", h, m, s) : fmt::format("{}:{:02}", m, s);
}

std::string progress_line(std::string_view label, double fraction, std::string_view text,
                          int columns) {
  constexpr int kWidest = 24, kNarrowest = 4;
  const int words = static_cast<int>(label.size() + text.size());
  const int width = std::min(kWidest, columns - words - 4);  // 4: the brackets and two spaces
  std::string line(label);
  if (width >= kNarrowest) {
    const int done = static_cast<int>(fraction * width);
    line += fmt::format(" [{:#<{}}{: <{}}]", "", done, "", width - done);
  }
  line += fmt::format(" {}", text);
  // A line that wraps could not be wiped.
  return line.substr(0, static_cast<size_t>(std::max(0, columns)));
}

ProgressBar::ProgressBar(bool shown, std::string label, uint64_t bytes)
    : shown_(shown), label_(std::move(label)), bytes_(bytes), started_(clock_.now()) {}

ProgressBar::~ProgressBar() { clear(); }

void ProgressBar::update(double fraction, std::string_view detail, double eta_seconds) {
  if (!shown_) return;
  const Nanoseconds now = clock_.now();
  if (fraction < 1 && now - drawn_ < std::chrono::milliseconds(100)) return;
  drawn_ = now;
  fraction = std::clamp(fraction, 0.0, 1.0);
  const double spent = std::chrono::duration<double>(now - started_).count();
  if (eta_seconds < 0 && fraction > 0.01) eta_seconds = spent * (1 - fraction) / fraction;
  std::string text = fmt::format("{:3.0f} %", 100 * fraction);
  if (!detail.empty()) text += fmt::format("  {}", detail);
  if (bytes_ > 0 && spent > 0) {
    const double rate = fraction * static_cast<double>(bytes_) / spent;
    text += fmt::format("  {}/s", human_bytes(static_cast<uint64_t>(rate)));
  }
  text += fmt::format("  ETA {}", clock_text(eta_seconds));
  fmt::print(stderr, "\r\033[K{}", progress_line(label_, fraction, text, terminal_columns() - 1));
  std::fflush(stderr);
}

void ProgressBar::clear() {
  if (shown_ && drawn_.count() > 0) fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
}

}  // namespace fastserve
