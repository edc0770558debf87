// fsctl: one command for everything FastServe does.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>

#include "cli/command.h"

namespace {

fastserve::CancelFlag* cancel_on_interrupt = nullptr;  // a signal handler has no other way in

extern "C" void on_interrupt(int) {
  if (cancel_on_interrupt->raised()) _exit(130);  // the second Ctrl-C: at once
  cancel_on_interrupt->raise();
}

void catch_interrupts(fastserve::CancelFlag& flag) {
  cancel_on_interrupt = &flag;
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
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
    "Models live in $FASTSERVE_HOME, --store, or your data folder. Exit codes: docs/exit-codes.md.";

}  // namespace

int main(int argc, char** argv) {
  using namespace fastserve;
  CommandLine line;
  Body run;
  CLI::App app{"Train, compress and serve language models from one engine.", "fsctl"};
  app.footer(kExamples);
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--store", line.store, "Folder of models and jobs")->type_name("DIR");
  app.add_option("--lanes", line.lanes, "CPU cores to use (default: all this process may)")
      ->check(CLI::Range(1, 1024));
  app.add_flag("--json", line.json, "Print one JSON document on stdout");
  app.add_flag("--quiet,-q", line.quiet, "No progress and no log lines");
  app.add_option("--color", line.colour, "auto, always or never")
      ->check(CLI::IsMember({"auto", "always", "never"}));

  add_train_command(app, line, run);
  add_compress_command(app, line, run);
  add_deploy_command(app, line, run);
  add_generate_commands(app, line, run);
  add_models_command(app, line, run);
  add_jobs_command(app, line, run);
  add_status_command(app, line, run);
  add_parity_command(app, line, run);
  add_bench_command(app, line, run);
  add_completion_command(app, line, run);
  add_version_command(app, line, run);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  catch_interrupts(line.cancel);
  return run();
}
