#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "api/parity.h"
#include "cli/command.h"

namespace fastserve {
namespace {

void print_check(const std::string& subject, const ParityCheck& check) {
  fmt::print("{} {:<34} {:<44} {:>10.3e}  (tolerance {:.1e}){}{}\n",
             check.skipped  ? "skip"
             : check.passed ? "ok  "
                            : "FAIL",
             subject, check.quantity, check.error, check.tolerance, check.note.empty() ? "" : "  ",
             check.note);
}

Json to_json(const std::string& subject, const ParityCheck& c) {
  return Json::object({{"subject", subject},
                       {"quantity", c.quantity},
                       {"error", c.error},
                       {"tolerance", c.tolerance},
                       {"passed", c.passed},
                       {"skipped", c.skipped},
                       {"note", c.note}});
}

int run_parity(const CommandLine& line, const std::string& directory) {
  auto isa = choose_isa();
  if (!isa.ok()) return fail(line, isa.error());
  size_t checks = 0, failed = 0;
  Json::Array rows;
  const Status status = check_parity(directory, *isa, std::max(1, line.lanes),
                                     [&](const std::string& subject, const ParityCheck& check) {
                                       checks++;
                                       failed += check.passed ? 0 : 1;
                                       if (line.json)
                                         rows.push_back(to_json(subject, check));
                                       else
                                         print_check(subject, check);
                                     });
  if (!status.ok()) return fail(line, status.error());
  const Json document = Json::object(
      {{"isa", isa_name(*isa)}, {"checks", checks}, {"failed", failed}, {"results", rows}});
  finish(line, document,
         [&] { fmt::print("{} checks, {} failed (cpu {})\n", checks, failed, isa_name(*isa)); });
  return failed == 0 ? 0 : kExitCheckFailed;
}

}  // namespace

void add_parity_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* c = app.add_subcommand(
      "parity",
      "Compare with recorded ground truth: models, tokenizers, quantisers, chat templates, "
      "malformed files");
  auto directory = std::make_shared<std::string>();
  c->add_option("directory", *directory, "A reference folder, or a folder of them")->required();
  c->footer(
      "Prints every quantity's error beside its tolerance; exits with 0, or 1 when one is "
      "outside.\n"
      "Example:\n  fsctl parity tests/data/reference");
  c->callback([&line, &run, directory] {
    run = [&line, directory] { return run_parity(line, *directory); };
  });
}

}  // namespace fastserve
