// One-line log messages to wherever the host wants them. There is no global logger: a Log is passed in.
#pragma once

#include <functional>
#include <string_view>

namespace fastserve {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

/// Threads: the sink must accept calls from any thread. An empty sink drops everything.
class Log {
 public:
  using Sink = std::function<void(LogLevel, std::string_view line)>;
  Log() = default;
  explicit Log(Sink sink, LogLevel least = LogLevel::kInfo) : sink_(std::move(sink)), least_(least) {}

  void debug(std::string_view line) const { write(LogLevel::kDebug, line); }
  void info(std::string_view line) const { write(LogLevel::kInfo, line); }
  void warning(std::string_view line) const { write(LogLevel::kWarning, line); }
  void error(std::string_view line) const { write(LogLevel::kError, line); }

 private:
  void write(LogLevel level, std::string_view line) const {
    if (sink_ && level >= least_) sink_(level, line);
  }
  Sink sink_;
  LogLevel least_ = LogLevel::kInfo;
};

}  // namespace fastserve
