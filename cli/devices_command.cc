#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "api/devices.h"
#include "base/file.h"
#include "cli/command.h"

namespace fastserve {
namespace {

Json problem_json(const std::optional<Error>& problem) {
  return problem ? error_json(*problem) : Json();
}

Json to_json(const GpuInfo& gpu) {
  return Json::object({{"index", gpu.index},
                       {"name", gpu.name},
                       {"capability", fmt::format("{}.{}", gpu.major, gpu.minor)},
                       {"memory_bytes", gpu.memory_bytes},
                       {"multiprocessors", gpu.multiprocessors},
                       {"bus", gpu.bus},
                       {"usable", gpu.problem.empty()},
                       {"problem", gpu.problem}});
}

Json to_json(const GpuLibrary& library) {
  return Json::object({{"name", library.name},
                       {"version", library.version},
                       {"path", library.path},
                       {"problem", library.problem}});
}

Json to_json(const DeviceList& list) {
  Json::Array gpus, libraries;
  for (const GpuInfo& gpu : list.gpu.gpus) gpus.push_back(to_json(gpu));
  for (const GpuLibrary& library : list.gpu.libraries) libraries.push_back(to_json(library));
  const Json cpu = Json::object({{"isa", isa_name(list.isa)},
                                 {"lanes", list.lanes},
                                 {"precisions", Json::Array{"fp32", "bf16", "fp16"}}});
  const auto problem = list.plugin_problem ? list.plugin_problem : list.gpu.problem;
  return Json::object({{"cpu", cpu},
                       {"gpus", gpus},
                       {"gpu_problem", problem_json(problem)},
                       {"plugin", list.plugin},
                       {"cuda_of_driver", list.gpu.driver},
                       {"cuda_of_plugin", list.gpu.runtime},
                       {"libraries", libraries}});
}

/// "what (hint)", the place in front of it: a whole sentence for whoever looks for a GPU.
void print_problem(const Error& problem) {
  fmt::print("gpu      none: {}{}\n", problem.where.empty() ? "" : problem.where + " ",
             problem.what);
  if (!problem.hint.empty()) fmt::print("         {}\n", problem.hint);
}

void print_gpus(const DeviceList& list) {
  if (list.plugin_problem) return print_problem(*list.plugin_problem);
  if (list.gpu.problem) print_problem(*list.gpu.problem);
  for (const GpuInfo& gpu : list.gpu.gpus) {
    fmt::print("gpu {:<4} {}, {}, capability {}.{}, {} multiprocessors, bus {}\n", gpu.index,
               gpu.name, human_bytes(gpu.memory_bytes), gpu.major, gpu.minor, gpu.multiprocessors,
               gpu.bus);
    if (!gpu.problem.empty()) fmt::print("         not usable: {}\n", gpu.problem);
  }
  if (const std::vector<int> alike = gpus_alike(list.gpu); alike.size() > 1)
    fmt::print("         {} of them train together with --device cuda:all\n", alike.size());
  fmt::print("plugin   {} (CUDA {}; the driver's: {})\n", list.plugin, list.gpu.runtime,
             list.gpu.driver.empty() ? "none" : list.gpu.driver);
  for (const GpuLibrary& library : list.gpu.libraries) {
    if (library.problem.empty())
      fmt::print("{:<8} {} ({})\n", library.name, library.version, library.path);
    else
      fmt::print("{:<8} not used: {}\n", library.name, library.problem);
  }
}

int run_devices(const CommandLine& line) {
  const auto list = list_devices(line.lanes);
  if (!list.ok()) return fail(line, list.error());
  return finish(line, to_json(*list), [&] {
    fmt::print("cpu      {}, {} {}; fp32, bf16, fp16\n", isa_name(list->isa), list->lanes,
               list->lanes == 1 ? "lane" : "lanes");
    print_gpus(*list);
  });
}

}  // namespace

void add_devices_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* c = app.add_subcommand("devices",
                               "List what this machine computes on, and why a GPU is not used");
  c->footer(
      "Tells the CPU's instruction set and lanes; each GPU with memory and compute capability; "
      "the\n"
      "NVIDIA driver and libraries with their versions; and for whatever is missing what to do.\n"
      "Numbers are those of --device cuda:NUMBER. Exits with 0 when there is no GPU too.\n"
      "Examples:\n"
      "  fsctl devices\n"
      "  fsctl devices --json\n"
      "  FASTSERVE_CUDA_PLUGIN=/opt/libfastserve_cuda.so fsctl devices    # a plugin elsewhere");
  c->callback([&line, &run] { run = [&line] { return run_devices(line); }; });
}

}  // namespace fastserve
