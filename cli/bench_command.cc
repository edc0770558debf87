#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "api/bench.h"
#include "cli/command.h"
#include "cli/memory_text.h"

namespace fastserve {
namespace {

int list_rows(const CommandLine& line) {
  Json::Array names;
  for (const BenchRow& row : bench_rows()) names.push_back(row.name);
  return finish(line, names, [&] {
    for (const BenchRow& row : bench_rows()) fmt::print("{:<18} {}\n", row.name, row.what);
  });
}

/// What the row's process took beside what the arithmetic says; nothing for rows that do not know.
void print_memory(const Json& detail) {
  const Json* peak = detail.find_set("peak_bytes");
  const Json* expected = detail.find_set("expected_bytes");
  if (peak == nullptr || expected == nullptr || !peak->is_int() || !expected->is_int()) return;
  fmt::print("  {}\n", memory_text(static_cast<uint64_t>(peak->as_int()),
                                   static_cast<uint64_t>(expected->as_int())));
}

int run_row(const CommandLine& line, const std::string& row, double seconds) {
  auto isa = choose_isa();
  if (!isa.ok()) return fail(line, isa.error());
  auto node = line.node();
  if (!node.ok()) return fail(line, node.error());
  auto result = run_bench(row, seconds, line.device, *isa, (*node)->options().lanes, line.cancel);
  if (!result.ok()) return fail(line, result.error());
  const Json document = Json::object({{"row", result->row},
                                      {"value", result->value},
                                      {"unit", result->unit},
                                      {"low", result->low},
                                      {"high", result->high},
                                      {"isa", result->isa},
                                      {"device", result->device},
                                      {"threads", result->threads},
                                      {"detail", result->detail}});
  return finish(line, document, [&] {
    fmt::print("{}: {:.1f} {} (from {:.1f} to {:.1f}; {}, {} threads)\n  {}\n", result->row,
               result->value, result->unit, result->low, result->high, result->device,
               result->threads, result->detail.dump());
    print_memory(result->detail);
  });
}

}  // namespace

void add_bench_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* c = app.add_subcommand("bench", "Measure one row of the speed table in this process");
  auto row = std::make_shared<std::string>();
  auto seconds = std::make_shared<double>(8);
  c->add_option("row", *row, "Which row; none: list them");
  c->add_option("--seconds", *seconds, "About how long to measure")->capture_default_str();
  c->footer("Examples:\n  fsctl bench\n  fsctl bench decode-110m --json");
  c->callback([&line, &run, row, seconds] {
    run = [&line, row, seconds] {
      return row->empty() ? list_rows(line) : run_row(line, *row, *seconds);
    };
  });
}

}  // namespace fastserve
