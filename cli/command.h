// What every fsctl command shares: the options in front of it, and how it speaks.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "api/node.h"

namespace CLI {
class App;
}

namespace fastserve {

/// Exit codes (docs/exit-codes.md): 0 done; 1 a check did not pass, or a job that was followed; 2
/// wrong usage; 10 + ErrorCode for an Error; 130 stopped by Ctrl-C.
inline constexpr int kExitCheckFailed = 1, kExitWrongUsage = 2;
int exit_code(const Error& error);

/// Options in front of the command, and the process's own state.
struct CommandLine {
  std::string store;            ///< --store
  int lanes = 0;                ///< --lanes
  std::string device = "auto";  ///< --device
  bool json = false;            ///< --json: one JSON document on stdout
  bool quiet = false;           ///< --quiet: no progress and no log lines
  std::string colour = "auto";
  std::string cluster;  ///< --cluster or $FASTSERVE_CLUSTER: HOST:PORT; empty: this machine
  std::string token;    ///< --token
  CancelFlag cancel;    ///< raised by Ctrl-C

  /// Lines on stderr; nothing with --quiet.
  Log log() const;
  /// Opens the node these options describe.
  Result<std::unique_ptr<Node>> node() const;
  bool progress_wanted() const;  ///< stderr is a terminal and nothing forbids it
  bool colour_wanted() const;
};

/// What the stored `models` come to, for a progress bar's rate; 0 when no bar is wanted.
uint64_t stored_bytes(const CommandLine& line, const Node& node,
                      const std::vector<std::string>& models);

/// Says the error on stderr, and returns its exit code.
int say(const CommandLine& line, const Error& error);
/// {"code", "what", "where", "hint"}
Json error_json(const Error& error);
/// Says the error and, with --json, prints {"error": ...} on stdout as the command's document.
int fail(const CommandLine& line, const Error& error);
/// The same for words that make no command line.
int fail_usage(const CommandLine& line, const Error& error);
/// Prints a document on stdout with --json; otherwise calls `text`.
int finish(const CommandLine& line, const Json& document, const std::function<void()>& text);

/// What was printed so far goes out. Throws std::system_error when nobody reads it any more or the
/// disk is full; main() ends the command then.
void flush_stdout();

/// A command's body; returns the exit code.
using Body = std::function<int()>;
/// Registers the command on the app; the chosen command puts its body into `run`.
void add_train_command(CLI::App& app, CommandLine& line, Body& run);
void add_compress_command(CLI::App& app, CommandLine& line, Body& run);
void add_deploy_command(CLI::App& app, CommandLine& line, Body& run);
void add_generate_commands(CLI::App& app, CommandLine& line, Body& run);  ///< generate, chat
void add_models_command(CLI::App& app, CommandLine& line, Body& run);
void add_jobs_command(CLI::App& app, CommandLine& line, Body& run);
void add_status_command(CLI::App& app, CommandLine& line, Body& run);
void add_cluster_command(CLI::App& app, CommandLine& line, Body& run);
void add_node_command(CLI::App& app, CommandLine& line, Body& run);
void add_top_command(CLI::App& app, CommandLine& line, Body& run);
void add_devices_command(CLI::App& app, CommandLine& line, Body& run);
void add_parity_command(CLI::App& app, CommandLine& line, Body& run);
void add_bench_command(CLI::App& app, CommandLine& line, Body& run);
void add_completion_command(CLI::App& app, CommandLine& line, Body& run);
void add_version_command(CLI::App& app, CommandLine& line, Body& run);

}  // namespace fastserve
