#include "cli/command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <system_error>

namespace fastserve {

int exit_code(const Error& error) {
  if (error.code == ErrorCode::kCancelled) return 130;
  return 10 + static_cast<int>(error.code);
}

Log CommandLine::log() const {
  if (quiet) return {};
  return Log([](LogLevel level, std::string_view text) {
    const char* mark = level == LogLevel::kWarning ? "warning: "
                       : level == LogLevel::kError ? "error: "
                                                   : "";
    fmt::print(stderr, "{}{}{}\n", isatty(STDERR_FILENO) ? "\r\033[K" : "", mark, text);
  });
}

Result<std::unique_ptr<Node>> CommandLine::node() const {
  NodeOptions options;
  options.root = store;
  options.lanes = lanes;
  options.device = device;
  options.log = log();
  return Node::create(std::move(options));
}

bool CommandLine::progress_wanted() const { return !quiet && !json && isatty(STDERR_FILENO) != 0; }

uint64_t stored_bytes(const CommandLine& line, const Node& node,
                      const std::vector<std::string>& models) {
  if (!line.progress_wanted()) return 0;
  const auto store = node.glance_at_store();
  uint64_t bytes = 0;
  for (const std::string& name : models) {
    const auto ref = ModelRef::parse(name);
    if (!store.ok() || !ref.ok()) return 0;  // the command itself will say why
    const auto model = (*store)->show(*ref);
    if (model.ok()) bytes += model->bytes;
  }
  return bytes;
}

bool CommandLine::colour_wanted() const {
  if (colour == "always") return true;
  const char* none = std::getenv("NO_COLOR");
  return colour == "auto" && isatty(STDERR_FILENO) != 0 && (none == nullptr || *none == 0);
}

namespace {

Json error_json(const char* code, const Error& error) {
  return Json::object(
      {{"code", code}, {"what", error.what}, {"where", error.where}, {"hint", error.hint}});
}

void print_failure(const CommandLine& line, Json error) {
  if (line.json) fmt::print("{}\n", Json::object({{"error", std::move(error)}}).dump(2));
}

}  // namespace

int say(const CommandLine& line, const Error& error) {
  const char* red = line.colour_wanted() ? "\033[31m" : "";
  const char* plain = line.colour_wanted() ? "\033[0m" : "";
  const std::string place = error.where.empty() ? "" : error.where + ": ";
  fmt::print(stderr, "{}fsctl: {}{}{}\n", red, place, error.what, plain);
  if (!error.hint.empty()) fmt::print(stderr, "  {}\n", error.hint);
  return exit_code(error);
}

Json error_json(const Error& error) { return error_json(error_code_name(error.code), error); }

int fail(const CommandLine& line, const Error& error) {
  print_failure(line, error_json(error));
  return say(line, error);
}

int fail_usage(const CommandLine& line, const Error& error) {
  print_failure(line, error_json("wrong usage", error));
  say(line, error);
  return kExitWrongUsage;
}

void flush_stdout() {
  if (std::fflush(stdout) != 0)
    throw std::system_error(errno, std::generic_category(), "cannot write to stdout");
}

int finish(const CommandLine& line, const Json& document, const std::function<void()>& text) {
  if (line.json)
    fmt::print("{}\n", document.dump(2));
  else
    text();
  return 0;
}

}  // namespace fastserve
