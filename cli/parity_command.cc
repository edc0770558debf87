#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "api/device_choice.h"
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

Result<ChosenDevice> chosen_device(const CommandLine& line, int lanes) {
  FS_ASSIGN(const Isa isa, choose_isa());
  const Path root = line.store.empty() ? default_root() : Path(line.store);
  FS_ASSIGN(ChosenDevice chosen, choose_device(line.device, isa, lanes, root / "gpu-plans"));
  FS_TRY(chosen.one_for("parity"));
  return chosen;
}

int run_parity(const CommandLine& line, const std::string& directory) {
  const int lanes = std::max(1, line.lanes);
  const auto chosen = chosen_device(line, lanes);
  if (!chosen.ok()) return fail(line, chosen.error());
  const auto device = chosen->make(lanes);
  if (!device.ok()) return fail(line, device.error());
  size_t checks = 0, failed = 0;
  Json::Array rows;
  const Status status =
      check_parity(directory, **device, [&](const std::string& subject, const ParityCheck& check) {
        checks++;
        failed += check.passed ? 0 : 1;
        if (line.json)
          rows.push_back(to_json(subject, check));
        else
          print_check(subject, check);
      });
  if (!status.ok()) return fail(line, status.error());
  const Json document = Json::object(
      {{"device", chosen->description}, {"checks", checks}, {"failed", failed}, {"results", rows}});
  finish(line, document,
         [&] { fmt::print("{} checks, {} failed ({})\n", checks, failed, chosen->line()); });
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
