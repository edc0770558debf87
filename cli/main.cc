// fsctl: one command for everything FastServe does.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <system_error>

#include "api/device_choice.h"
#include "base/spelling.h"
#include "cli/cluster_client.h"
#include "cli/command.h"
#include "cli/completion.h"

namespace {

using namespace fastserve;

CancelFlag* cancel_on_interrupt = nullptr;  // a signal handler has no other way in

extern "C" void on_interrupt(int) {
  if (cancel_on_interrupt->raised()) _exit(130);  // the second Ctrl-C: at once
  cancel_on_interrupt->raise();
}

void catch_interrupts(CancelFlag& flag) {
  cancel_on_interrupt = &flag;
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ,
              SIG_IGN);  // a file size limit is then an error of the write, like a full disk
}

constexpr const char* kExamples =
    "Examples:\n"
    "  fsctl train --data texts/ --preset tiny --model poems       train a new model on your text\n"
    "  fsctl compress poems --weights int8 --to poems-int8         make it smaller, measure what "
    "it cost\n"
    "  fsctl deploy poems-int8 --port 8080                         serve it over Cap'n Proto\n"
    "  fsctl generate --connect 127.0.0.1:8080 --prompt 'Once'     ask it\n"
    "  fsctl models import ./Llama-3.2-1B --name llama             take a Hugging Face directory "
    "in\n"
    "  fsctl train --cluster 10.0.0.1:7070 --data texts/ --model poems    let a cluster do it\n"
    "Models live in $FASTSERVE_HOME, --store, or your data folder. Exit codes: docs/exit-codes.md.";

/// A command without examples of its own shows those of its group that call it.
void share_examples(CLI::App& group) {
  for (CLI::App* command : group.get_subcommands(nullptr)) {
    if (command->get_footer().empty()) {
      std::string examples;
      for (const std::string& line : CLI::detail::split(group.get_footer(), '\n'))
        if (line.find("fsctl " + group.get_name() + " " + command->get_name()) != line.npos)
          examples += "\n" + line;
      if (!examples.empty()) command->footer("Examples:" + examples);
    }
    share_examples(*command);
  }
}

/// The command that the words before a mistake chose.
const CLI::App& chosen(const CLI::App& app) {
  const auto parsed = app.get_subcommands();
  return parsed.empty() ? app : chosen(*parsed.back());
}

std::string full_name(const CLI::App& app) {
  return app.get_parent() == nullptr ? app.get_name()
                                     : full_name(*app.get_parent()) + " " + app.get_name();
}

/// What is wrong with the words, and the word that may have been meant.
Error usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App& command = chosen(app);
  const std::string name = full_name(command);
  const std::string where = &command == &app ? "" : name.substr(app.get_name().size() + 1);
  Error out{ErrorCode::kInvalidArgument, error.what(), where, "see " + name + " --help"};
  std::vector<std::string> unknown = command.remaining();
  for (const CLI::App* above = command.get_parent(); unknown.empty() && above != nullptr;
       above = above->get_parent())
    unknown = above->remaining();
  if (unknown.empty()) return out;
  const std::string& word = unknown.front();
  const bool option = word.starts_with('-');
  if (!option && command.get_subcommands(nullptr).empty()) {
    out.what = "there is no place for \"" + word + "\"";
    return out;
  }
  out.what = "\"" + word + "\" is no " + (option ? "option" : "command");
  const auto near = near_names(word, names_at(command, option));
  if (!near.empty()) out.hint = "did you mean " + near.front() + "? (" + name + " --help)";
  return out;
}

int fail_words(const CLI::App& app, CommandLine& line, const CLI::ParseError& error, int argc,
               char** argv) {
  // The mistake may have come before --json was read.
  line.json = std::find(argv, argv + argc, std::string_view("--json")) != argv + argc;
  return fail_usage(line, usage_error(app, error));
}

/// Runs the command; what reaches us as an exception is a full disk, a reader that has gone, too
/// little memory, or a bug.
int run_and_flush(CommandLine& line, const Body& run) {
  try {
    const int code = run();
    flush_stdout();
    return code;
  } catch (const std::system_error& error) {
    // Whoever read our output has seen enough, as in `fsctl models list | head -1`.
    if (error.code() == std::errc::broken_pipe) _exit(128 + SIGPIPE);
    line.json = false;  // it may be stdout that cannot be written
    return fail(line, {ErrorCode::kIo, error.what(), "", ""});
  } catch (const std::bad_alloc&) {
    return fail(line, {ErrorCode::kResourceExhausted, "out of memory", "", "ask for less at once"});
  } catch (const std::exception& error) {
    return fail(line, {ErrorCode::kInternal, error.what(), "", "please report this"});
  }
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line;
  Body run;
  CLI::App app{"Train, compress and serve language models from one engine.", "fsctl"};
  app.set_version_flag("--version", "fsctl " FASTSERVE_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--store", line.store, "Folder of models and jobs")->type_name("DIR");
  app.add_option("--lanes", line.lanes, "CPU cores to use (default: all this process may)")
      ->check(CLI::Range(1, 1024));
  app.add_option(
         "--device", line.device,
         "What to compute on: cpu, cuda, or auto (default): a GPU where one is fit. cuda:1 is "
         "that GPU; cuda:all, or cuda:0,2, train on all of them together")
      ->type_name("DEVICE")
      ->check([](const std::string& word) {
        const Status known = check_device_name(word);
        return known.ok() ? std::string() : known.error().message();
      });
  app.add_flag("--json", line.json, "Print one JSON document on stdout");
  app.add_flag("--quiet,-q", line.quiet, "No progress and no log lines");
  app.add_option("--color", line.colour, "auto, always or never")
      ->check(CLI::IsMember({"auto", "always", "never"}));
  app.add_option("--cluster", line.cluster,
                 "Let a cluster do it (or $FASTSERVE_CLUSTER): its coordinator's address")
      ->type_name("HOST:PORT");
  app.add_option(
      "--token", line.token,
      "Access token of the cluster (or $FASTSERVE_TOKEN, or the one in the store's folder)");

  add_train_command(app, line, run);
  add_compress_command(app, line, run);
  add_deploy_command(app, line, run);
  add_generate_commands(app, line, run);
  add_models_command(app, line, run);
  add_jobs_command(app, line, run);
  add_status_command(app, line, run);
  add_cluster_command(app, line, run);
  add_node_command(app, line, run);
  add_top_command(app, line, run);
  add_devices_command(app, line, run);
  add_parity_command(app, line, run);
  add_bench_command(app, line, run);
  add_completion_command(app, line, run);
  add_version_command(app, line, run);

  share_examples(app);
  app.footer(kExamples);  // last, because commands take over the footer they find
  if (argc > 2 && argv[1] == std::string_view("complete"))  // what completion scripts call
    return print_completions(app, {argv + 2, argv + argc});
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {  // --help, --version
    return app.exit(asked);
  } catch (const CLI::ParseError& error) {
    return fail_words(app, line, error, argc, argv);
  }
  if (Status chosen = choose_cluster(app, line); !chosen.ok()) return fail(line, chosen.error());
  catch_interrupts(line.cancel);
  return run_and_flush(line, run);
}
