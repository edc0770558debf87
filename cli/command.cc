#include "cli/command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>

namespace fastserve {

int exit_code(const Error& error) {
  if (error.code == ErrorCode::kCancelled) return 130;
  return 10 + static_cast<int>(error.code);
}

Result<std::unique_ptr<Node>> CommandLine::node() const {
  NodeOptions options;
  options.root = store;
  options.lanes = lanes;
  if (!quiet)
    options.log = Log([](LogLevel level, std::string_view text) {
      const char* mark = level == LogLevel::kWarning ? "warning: "
                         : level == LogLevel::kError ? "error: "
                                                     : "";
      fmt::print(stderr, "{}{}{}\n", isatty(STDERR_FILENO) ? "\r\033[K" : "", mark, text);
    });
  return Node::create(std::move(options));
}

bool CommandLine::progress_wanted() const { return !quiet && !json && isatty(STDERR_FILENO) != 0; }

bool CommandLine::colour_wanted() const {
  if (colour == "always") return true;
  const char* none = std::getenv("NO_COLOR");
  return colour == "auto" && isatty(STDERR_FILENO) != 0 && (none == nullptr || *none == 0);
}

int fail(const CommandLine& line, const Error& error) {
  if (line.json) {
    const Json document =
        Json::object({{"error", Json::object({{"code", error_code_name(error.code)},
                                              {"what", error.what},
                                              {"where", error.where},
                                              {"hint", error.hint}})}});
    fmt::print(stderr, "{}\n", document.dump());
    return exit_code(error);
  }
  const char* red = line.colour_wanted() ? "\033[31m" : "";
  const char* plain = line.colour_wanted() ? "\033[0m" : "";
  const std::string place = error.where.empty() ? "" : error.where + ": ";
  fmt::print(stderr, "{}fsctl: {}{}{}\n", red, place, error.what, plain);
  if (!error.hint.empty()) fmt::print(stderr, "  {}\n", error.hint);
  return exit_code(error);
}

int finish(const CommandLine& line, const Json& document, const std::function<void()>& text) {
  if (line.json)
    fmt::print("{}\n", document.dump(2));
  else
    text();
  return 0;
}

}  // namespace fastserve
