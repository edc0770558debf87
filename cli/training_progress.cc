#include "cli/training_progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>

namespace fastserve {

TrainingProgress::TrainingProgress(const CommandLine& line)
    : bar_(line.progress_wanted(), "train"),
      lines_shown_(!line.quiet && !line.json && isatty(STDERR_FILENO) == 0),
      last_line_(clock_.now()) {}

void TrainingProgress::update(const TrainUpdate& u) {
  const double fraction =
      u.steps > 0 ? static_cast<double>(u.step) / static_cast<double>(u.steps) : 0;
  const std::string validation =
      u.validation_loss > 0 ? fmt::format("  val {:.4f}", u.validation_loss) : "";
  const std::string text = fmt::format("step {}/{}  loss {:.4f}{}  {:.0f} tok/s", u.step, u.steps,
                                       u.loss, validation, u.tokens_per_second);
  bar_.update(fraction, text, u.eta_seconds);
  const bool evaluated = std::isfinite(u.validation_loss) && u.validation_loss != validation_loss_;
  if (evaluated) validation_loss_ = u.validation_loss;
  const Nanoseconds now = clock_.now();
  if (!lines_shown_ || (!evaluated && now - last_line_ < std::chrono::seconds(10))) return;
  last_line_ = now;
  fmt::print(stderr, "{}  ETA {}\n", text, clock_text(u.eta_seconds));
}

}  // namespace fastserve
